"""Building the reference: its values against the live model, what goes through the model, and interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.method import reference
from pact_plugins.method.harm_probe import HarmProbe
from pact_plugins.method.reference import Computed, open_or_build
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.identity import Identity
from pact_plugins.storage.writer import CacheWriter
from tests import tiny
from tests.caches import FULL_ONLY, HALF, IDENTITY, IDS, but, expected, look_up, made, segment
from tests.rows import CHAT, Row, alone, conversation, documents, few, padded


@pytest.fixture
def head() -> SubsetHead:
    return SubsetHead(tiny.llama(), IDS)


@pytest.fixture
def rows() -> list[Row]:
    return few()


def test_equals_the_live_model(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a reference that is off by a position, a turn, or a view."""
    cache = made(tmp_path / "c", head, rows)
    for row in rows:
        _, found = look_up(cache, alone(row))
        assert found.answer_only is not None
        for values, target in zip((found.full, found.answer_only), expected(head.model, row), strict=True):
            assert values.shape == target.shape
            assert np.abs(values - target).max() < HALF


def test_the_views_differ(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: the answer-only view seeing the prompt, which would make the gate a constant."""
    cache = made(tmp_path / "c", head, rows)
    _, found = look_up(cache, alone(rows[0]))
    assert found.answer_only is not None
    assert np.abs(found.full - found.answer_only).max() > 0.1


def test_the_answer_only_view_restarts_at_each_answer(head: SubsetHead, tmp_path: Path) -> None:
    """Prevents: a second turn whose answer-only context still holds the first turn, or another prompt."""
    rows = [conversation(("x", "same"), ("y", "same")), conversation(("something else", "same"))]
    cache = made(tmp_path / "c", head, rows)
    tokens, found = look_up(cache, padded(rows))
    assert found.answer_only is not None
    first, second, third = (found.answer_only[tokens.answer == a] for a in range(3))
    assert np.abs(first - second).max() < HALF
    assert np.abs(first - third).max() < HALF
    assert np.abs(found.full[tokens.answer == 0] - found.full[tokens.answer == 1]).max() > 0.1


def test_duplicates_are_stored_once(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: repeated rows multiplying time and disk, or shifting the offsets of the rows after them."""
    once = made(tmp_path / "a", head, rows)
    twice = made(tmp_path / "b", head, [rows[1], *rows, *rows])
    assert twice.stores[0].documents == once.stores[0].documents == len(rows)
    for row in rows:
        assert np.abs(look_up(once, alone(row))[1].full - look_up(twice, alone(row))[1].full).max() < HALF


def test_small_batches_change_nothing(
    head: SubsetHead, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: values that land at another document's offset when batches are formed by length."""
    large = made(tmp_path / "a", head, rows)
    batches = reference.batches_by_length
    monkeypatch.setattr(reference, "batches_by_length", lambda lengths: batches(lengths, 1))
    small = made(tmp_path / "b", head, rows)
    _, one = look_up(large, padded(rows))
    _, other = look_up(small, padded(rows))
    assert one.answer_only is not None
    assert other.answer_only is not None
    assert np.abs(one.full - other.full).max() < HALF
    assert np.abs(one.answer_only - other.answer_only).max() < HALF


@pytest.mark.parametrize("budget", [1, 300, 4096])
def test_batches_are_mostly_tokens(budget: int) -> None:
    """Prevents: forward passes over padding, which cost what tokens cost; batches that do not fit, or lose a row."""
    lengths = [1, 250, 7, 80, 81, 79, 3, 120, 249, 2, 60, 60, 5]
    batches = reference.batches_by_length(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    widths = [max(lengths[i] for i in batch) for batch in batches]
    padded_to = [width * len(batch) for width, batch in zip(widths, batches, strict=True)]
    assert all(size <= budget or len(batch) == 1 for size, batch in zip(padded_to, batches, strict=True))
    assert sum(padded_to) * 0.75 <= sum(lengths)
    assert len(batches) < len(lengths) or budget == 1


def test_without_the_gate_only_one_view_is_made(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: paying for, or needing a chat template for, a view that nothing reads."""
    cache = made(tmp_path / "c", head, rows, FULL_ONLY)
    _, found = look_up(cache, alone(rows[0]))
    assert found.answer_only is None
    assert not (segment(tmp_path / "c", FULL_ONLY) / "answer_only.safetensors").exists()


@contextmanager
def sequences_run(head: SubsetHead) -> Iterator[list[list[int]]]:
    """Every sequence that goes through the decoder, without padding."""
    sequences: list[list[int]] = []

    def note(_module: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        rows = zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)
        sequences.extend(ids[mask.bool()].tolist() for ids, mask in rows)

    hook = head.base.get_decoder().register_forward_hook(note, with_kwargs=True)
    yield sequences
    hook.remove()


def tokens_run(head: SubsetHead, folder: Path, rows: list[Row], identity: Identity) -> list[list[int]]:
    """Every sequence that a build puts through the decoder, without padding."""
    with sequences_run(head) as sequences:
        made(folder, head, rows, identity)
    return sequences


def test_nothing_beyond_the_reach_is_computed(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: paying for the view without the prompt where the gate is closed."""
    alone_too = tokens_run(head, tmp_path / "a", rows, but(reach=3))
    full = tokens_run(head, tmp_path / "b", rows, FULL_ONLY)
    header = list(CHAT.header)
    short = [s for s in alone_too if s not in full]
    assert len(alone_too) == len(full) + len(short)
    assert {len(s) for s in short} == {len(header) + 2}
    assert all(s[: len(header)] == header for s in short)


def test_equal_answers_are_computed_once(head: SubsetHead, tmp_path: Path) -> None:
    """Prevents: a classification set, with thousands of rows and four answers, paying for each row's answer again."""
    rows = [conversation((f"question {i}", ["World", "Sports"][i % 2])) for i in range(6)]
    run = tokens_run(head, tmp_path / "c", rows, IDENTITY)
    assert len(run) == 6 + 2
    for row in rows:
        _, found = look_up(ReferenceCache(tmp_path / "c", IDENTITY), alone(row))
        assert found.answer_only is not None
        assert np.abs(found.answer_only - expected(head.model, row)[1]).max() < HALF


def test_modes_are_restored_and_dropout_is_off(rows: list[Row], tmp_path: Path) -> None:
    """Prevents: training without dropout after the build, or a reference that dropout has randomised."""
    model = tiny.llama(attention_dropout=0.5).train()
    model.model.layers[1].eval()  # a module that its owner keeps frozen
    modes = [m.training for m in model.modules()]
    head = SubsetHead(model, IDS)
    first, second = made(tmp_path / "a", head, rows), made(tmp_path / "b", head, rows)
    assert [m.training for m in model.modules()] == modes
    assert (look_up(first, padded(rows))[1].full == look_up(second, padded(rows))[1].full).all()
    assert all(p.grad is None for p in model.parameters())


def test_a_finished_cache_is_found_again(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: paying for the reference in every run; and taking another identity's cache for it."""
    calls = []
    head.base.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    docs = documents(rows)
    cache, computed = open_or_build(tmp_path, IDENTITY, docs, head, CHAT, show_progress=False)
    assert computed.rows == len(rows)
    passes = len(calls)
    assert passes > 0
    again, computed = open_or_build(tmp_path, IDENTITY, docs, head, CHAT, show_progress=False)
    assert computed == Computed()
    assert len(calls) == passes
    assert again.folder == cache.folder
    other, computed = open_or_build(tmp_path, FULL_ONLY, docs, head, CHAT, show_progress=False)
    assert computed.rows == len(rows)
    assert other.folder != cache.folder


@pytest.mark.parametrize("identity", [IDENTITY, FULL_ONLY, but(harm="h")], ids=["gate", "full", "harm"])
@pytest.mark.parametrize("case", ["one changed", "a tenth added", "another task"])
def test_only_new_rows_are_computed(case: str, identity: Identity, tmp_path: Path) -> None:
    """Prevents: a row that was edited costing the whole data set; and values that differ from those of a fresh build.

    Beyond one step of float16, no value does: which rows share a forward pass may change the last bits.
    """
    head, old = SubsetHead(tiny.llama(), IDS), few(20)
    more = [conversation((f"new {i}", f"answer {i}")) for i in range(2)]
    rows = {"one changed": [*old[1:], more[0]], "a tenth added": [*old, *more], "another task": [*old[:3], *more]}[case]
    probe = HarmProbe(torch.zeros(64), torch.ones(64), torch.linspace(-1, 1, 64) / 8, 0.1)
    how: dict[str, Any] = {"probe": lambda: probe, "show_progress": False}
    first, _ = open_or_build(tmp_path / "c", identity, documents(old), head, CHAT, **how)
    before = {d.key: first.look_up(AnswerTokens.of([d], CHAT)) for d in documents(old)}
    cache, computed = open_or_build(tmp_path / "c", identity, documents(rows), head, CHAT, **how)
    new = [row for row in rows if row not in old]
    assert (computed.rows, computed.prompts) == (len(new), 0)
    assert cache.folder == first.folder
    assert [len(one) for one in cache.stores[0].segments] == [len(old), len(new)]
    fresh, _ = open_or_build(tmp_path / "d", identity, documents(rows), head, CHAT, **how)
    for document in documents(rows):
        tokens = AnswerTokens.of([document], CHAT)
        found, expected = cache.look_up(tokens), fresh.look_up(tokens)
        for name in ("full", "answer_only", "harm"):
            values, afresh = getattr(found, name), getattr(expected, name)
            assert (values is None) == (afresh is None)
            if values is not None:
                assert (np.abs(values - afresh) <= np.spacing(np.abs(afresh))).all()
            if values is not None and document.key in before:
                assert (values == getattr(before[document.key], name)).all()


def test_another_probe_reads_prompts_alone(tmp_path: Path) -> None:
    """Prevents: the harm of a probe that was fitted on other rows, and answers that go through the model for it."""
    head, rows = SubsetHead(tiny.llama(), IDS), few(6)
    probes = [HarmProbe(torch.zeros(64), torch.ones(64), torch.linspace(-1, 1, 64) / n, 0.1) for n in (8, 2)]
    made(tmp_path / "c", head, rows, but(harm="one"), probe=lambda: probes[0])
    how: dict[str, Any] = {"probe": lambda: probes[1], "show_progress": False}
    with sequences_run(head) as run:
        cache, computed = open_or_build(tmp_path / "c", but(harm="two"), documents(rows), head, CHAT, **how)
    assert (computed.rows, computed.prompts) == (0, len(rows))
    prompts = [d.input_ids[: d.answers(CHAT)[-1].start].tolist() for d in documents(rows)]
    assert sorted(run) == sorted(prompts)
    fresh = made(tmp_path / "d", head, rows, but(harm="two"), probe=lambda: probes[1])
    found, afresh = look_up(cache, padded(rows))[1], look_up(fresh, padded(rows))[1]
    assert found.harm is not None
    assert afresh.harm is not None
    np.testing.assert_allclose(found.harm, afresh.harm, atol=1e-3)
    # Other safety tokens have the same harm.
    how["probe"] = lambda: pytest.fail("it is there")
    other = but(harm="two", safety_tokens="o")
    _, computed = open_or_build(tmp_path / "c", other, documents(rows), head, CHAT, **how)
    assert (computed.rows, computed.prompts) == (len(rows), 0)


def test_a_build_that_stored_the_harm_alone_needs_no_pass(
    head: SubsetHead, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: all rows computed again since the build was interrupted between the ends of its two stores."""
    identity, probe = but(harm="h"), HarmProbe(torch.zeros(64), torch.ones(64), torch.zeros(64), 0.0)
    finish = CacheWriter.finish

    def cut(writer: CacheWriter) -> float:
        if writer.identity.harm is None:
            raise KeyboardInterrupt
        return finish(writer)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "finish", cut)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, head, rows, identity, probe=lambda: probe)
    with sequences_run(head) as run:
        made(tmp_path, head, rows, identity).verify()
    assert not run


def test_a_cache_appears_only_when_whole(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: an interrupted build being taken for a finished one by the next run."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = head.base.get_decoder().register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(tmp_path, IDENTITY, documents(rows), head, CHAT, show_progress=False)
    hook.remove()
    _, computed = open_or_build(tmp_path, IDENTITY, documents(rows), head, CHAT, show_progress=False)
    assert computed.rows == len(rows)


def test_a_model_that_is_not_finite_is_refused(rows: list[Row], tmp_path: Path) -> None:
    """Prevents: NaN stored as the reference, and then as the loss of every step."""
    model = tiny.llama()
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(PactError, match="finite logits"):
        made(tmp_path, SubsetHead(model, IDS), rows)
    assert not ReferenceCache(tmp_path, IDENTITY).stores[0].segments


def test_impossible_tokens_are_stored_as_finite(rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a log-probability below float16's range becoming minus infinity, and its product with 0 NaN."""
    model = tiny.llama()
    with torch.no_grad():
        model.model.norm.weight.mul_(1e6)
    cache = made(tmp_path / "c", SubsetHead(model, IDS), rows)
    _, found = look_up(cache, padded(rows))
    assert np.isfinite(found.full).all()
    assert found.full.min() < -60000


def test_the_answer_only_view_needs_a_header(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: an answer-only context without the header, whose first position has no hidden state."""
    with pytest.raises(PactError, match="reference without the prompt"):
        open_or_build(tmp_path, IDENTITY, documents(rows), head, ChatFormat(), show_progress=False)


def without_prompt(document: Document, reach: int, chat: ChatFormat) -> list[reference.ForwardSequence]:
    tokens = [AnswerTokens.of([document], chat)]
    wanted = {"answer_only": reference.value_counts(tokens, reach)["answer_only"]}
    return reference.forward_sequences(tokens, wanted, reach, chat)


@pytest.mark.parametrize(("prefix", "kept"), [("header", 0), ("bos", 1), ("bos+system", None)])
def test_what_stands_before_an_answer_without_its_prompt(prefix: Any, kept: int | None) -> None:
    """Prevents: an answer-only context with parts of the prompt in it, or without what the settings keep."""
    tokenizer = tiny.tokenizer()
    chat = ChatFormat.from_tokenizer(tokenizer, prefix)
    turns = [("system", "be kind"), ("user", "one"), ("assistant", "first"), ("user", "two"), ("assistant", "second")]
    ids = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], return_dict=False)
    (document,) = documents([(ids, ids)])
    sequences = without_prompt(document, 100, chat)
    before = tokenizer.decode(ids[:kept] if kept is not None else ids[: ids.index(chat.users[0][0])])
    header = tokenizer.decode(list(chat.header))
    assert [tokenizer.decode(s.input_ids) for s in sequences] == [
        before + header + text for text in ("first", "second")
    ]
    for sequence, text in zip(sequences, ("first", "second"), strict=True):
        assert sequence.columns.tolist() == list(
            range(len(sequence.input_ids) - len(text) - 1, len(sequence.input_ids))
        )


def test_a_gap_and_a_lead_keep_their_places_without_the_prompt() -> None:
    """Prevents: the reference of another token where a part of an answer, or its thinking block, is trained on too."""
    chat = ChatFormat((50, 51), openings=((50,),), leads=((51,),), ends=(1,))
    ids = np.asarray([0, 7, 50, 51, 60, 61, 62, 1])
    document = Document(ids, np.isin(ids, [51, 60, 62, 1]))
    tokens = AnswerTokens.of([document], chat)
    assert tokens.position.tolist() == [-1, 0, 2, 3]
    (sequence,) = without_prompt(document, 3, chat)
    assert sequence.input_ids.tolist() == [50, 51, 60, 61]
    assert sequence.columns.tolist() == [0, 1, 3]
