"""The reference cache: what it stores, that it is found again, and that damage never passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pact_plugins import building, reference
from pact_plugins.answers import AnswerTokens, Document, split_documents
from pact_plugins.building import build, open_or_build
from pact_plugins.chat_format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.reference import FORMAT, Reference, ReferenceCache
from pact_plugins.subset_head import SubsetHead
from tests import tiny
from tests.rows import CHAT, Row, alone, conversation, documents, few, flip_bit, packed, padded

IDS = [50, 7, 80, 200]
IDENTITY: dict[str, Any] = {
    "format": FORMAT,
    "model": "m",
    "data": "d",
    "views": ["full", "answer_only"],
    "reach": 1000,
}
FULL_ONLY: dict[str, Any] = {**IDENTITY, "views": ["full"], "reach": 0}
HALF = 4e-3
"""Error of a log-probability of size 8 stored as float16."""


@pytest.fixture
def head() -> SubsetHead:
    return SubsetHead(tiny.llama(), IDS)


@pytest.fixture
def rows() -> list[Row]:
    return few()


def made(folder: Path, head: SubsetHead, rows: list[Row], identity: dict[str, Any] = IDENTITY) -> ReferenceCache:
    build(folder, identity, documents(rows), head, CHAT, show_progress=False)
    return ReferenceCache(folder, identity)


def look_up(cache: ReferenceCache, batch: dict[str, Any], chat: ChatFormat = CHAT) -> tuple[AnswerTokens, Reference]:
    tokens = AnswerTokens.of(split_documents(batch), chat)
    return tokens, cache.look_up(tokens)


@torch.no_grad()
def live(model: nn.Module, ids: list[int]) -> np.ndarray:
    """[L, S] log-probabilities of the token after each of `ids`, from one unpadded sequence in float32."""
    logits = model.eval()(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits, -1)[:, IDS].numpy()


def expected(model: nn.Module, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Both views of a row's answer tokens, one forward pass for each answer."""
    (document,) = documents([row])
    full, answer_only = [], []
    for start, stop in document.answers(CHAT):
        full.append(live(model, row[0])[start - 1 : stop - 1])
        alone_ids = [*CHAT.header, *row[0][start : stop - 1]]
        answer_only.append(live(model, alone_ids)[len(CHAT.header) - 1 :])
    return np.concatenate(full), np.concatenate(answer_only)


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


@pytest.mark.parametrize("batch_of", [packed, padded, lambda r: padded(r, left=True), lambda r: packed(r, tail=3)])
def test_packed_and_padded_lookups(
    head: SubsetHead, rows: list[Row], tmp_path: Path, batch_of: Callable[[list[Row]], dict[str, Any]]
) -> None:
    """Prevents: a packed batch whose documents are served each other's reference."""
    cache = made(tmp_path / "c", head, rows)
    order = [rows[2], rows[0], rows[3], rows[0], rows[1]]
    _, found = look_up(cache, batch_of(order))
    singles = [look_up(cache, alone(row))[1] for row in order]
    assert found.answer_only is not None
    assert (found.full == np.concatenate([s.full for s in singles])).all()
    assert (found.answer_only == np.concatenate([s.answer_only for s in singles])).all()  # type: ignore[arg-type]


def test_duplicates_are_stored_once(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: repeated rows multiplying time and disk, or shifting the offsets of the rows after them."""
    once = made(tmp_path / "a", head, rows)
    twice = made(tmp_path / "b", head, [rows[1], *rows, *rows])
    assert twice.manifest["documents"] == once.manifest["documents"] == len(rows)
    for row in rows:
        assert np.abs(look_up(once, alone(row))[1].full - look_up(twice, alone(row))[1].full).max() < HALF


def test_small_batches_change_nothing(
    head: SubsetHead, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: values that land at another document's offset when batches are formed by length."""
    large = made(tmp_path / "a", head, rows)
    batches = building.batches_by_length
    monkeypatch.setattr(building, "batches_by_length", lambda lengths: batches(lengths, 1))
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
    batches = building.batches_by_length(lengths, budget)
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
    assert not (tmp_path / "c" / "answer_only.npy").exists()


def tokens_run(head: SubsetHead, folder: Path, rows: list[Row], identity: dict[str, Any]) -> list[list[int]]:
    """Every sequence that a build puts through the decoder, without padding."""
    sequences: list[list[int]] = []

    def note(_module: nn.Module, _args: Any, kw: dict[str, Any], _output: Any) -> None:
        rows = zip(kw["input_ids"], kw["attention_mask"], strict=True)
        sequences.extend(ids[mask.bool()].tolist() for ids, mask in rows)

    hook = head.base.get_decoder().register_forward_hook(note, with_kwargs=True)
    made(folder, head, rows, identity)
    hook.remove()
    return sequences


@pytest.mark.parametrize("reach", [0, 1, 5])
def test_beyond_the_reach_the_answer_only_view_is_the_full_one(
    head: SubsetHead, rows: list[Row], tmp_path: Path, reach: int
) -> None:
    """Prevents: rows beyond the gate's reach that shift those of the next turn, or hold another token's values."""
    whole = made(tmp_path / "a", head, rows)
    cut = made(tmp_path / "b", head, rows, {**IDENTITY, "reach": reach})
    tokens, all_of_it = look_up(whole, packed(rows))
    _, found = look_up(cut, packed(rows))
    assert found.answer_only is not None
    assert all_of_it.answer_only is not None
    within = tokens.position < reach
    assert np.abs(found.full - all_of_it.full).max() < HALF
    assert (found.answer_only[~within] == found.full[~within]).all()
    assert np.abs(found.answer_only - all_of_it.answer_only)[within].max(initial=0) < HALF
    assert np.abs(found.full - all_of_it.answer_only)[~within].max() > 0.1
    assert cut.manifest["reached_tokens"] == within.sum()


def test_nothing_beyond_the_reach_is_computed(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: paying for the view without the prompt where the gate is closed."""
    alone_too = tokens_run(head, tmp_path / "a", rows, {**IDENTITY, "reach": 3})
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


@pytest.mark.parametrize("reach", [0, 4])
def test_size_on_disk(tmp_path: Path, reach: int) -> None:
    """Prevents: an index, or a view, that makes the cache larger than its values of two bytes each."""
    size, number = 50, 256
    head = SubsetHead(tiny.llama(), list(range(size)))
    rows = [conversation((f"question {i}", f"answer {i}" + " so" * (i % 4))) for i in range(number)]
    cache = made(tmp_path / "c", head, rows, {**IDENTITY, "reach": reach} if reach else FULL_ONLY)
    answer_tokens = cache.manifest["answer_tokens"]
    assert answer_tokens > 3000
    values = answer_tokens + number * reach
    assert values * size * 2 < cache.size < values * size * 2 * 1.05


def test_a_lookup_reads_the_rows_asked_for(
    head: SubsetHead, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: lookups, or opening, that read the values of all documents, and memory that grows with the data."""
    made(tmp_path / "c", head, rows, {**IDENTITY, "reach": 2})
    read: list[int] = []
    checksum = reference._checksum

    def counting(parts: Iterable[np.ndarray]) -> int:
        parts = list(parts)
        read.append(sum(len(part) for part in parts))
        return checksum(parts)

    monkeypatch.setattr(reference, "_checksum", counting)
    cache = ReferenceCache(tmp_path / "c", {**IDENTITY, "reach": 2})
    assert read == []
    for array in (*cache._views.values(), cache._high, cache._low, cache._checksums, *cache._offsets.values()):
        while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)
    tokens, _ = look_up(cache, alone(rows[1]))
    assert read == [len(tokens) + int((tokens.position < 2).sum())]


def test_an_empty_batch(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a crash in the one batch of an epoch that has no answer token."""
    found = made(tmp_path / "c", head, rows).look_up(AnswerTokens.of([], CHAT))
    assert found.answer_only is not None
    assert found.full.shape == found.answer_only.shape == (0, len(IDS))


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


def test_a_miss_is_an_error(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: an augmented or truncated row that trains without PACT."""
    cache = made(tmp_path / "c", head, rows)
    for stranger in (conversation(("new", "row")), (rows[0][0][:-1], rows[0][1][:-1])):
        with pytest.raises(PactError, match=r"would train without PACT\."):
            look_up(cache, packed([rows[0], stranger]))
    tokens = AnswerTokens.of(documents(rows[:1]), CHAT)
    with pytest.raises(PactError, match="values in full"):
        cache.look_up(replace(tokens, counts=tokens.counts - 1))


def test_keys_that_share_their_first_half(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a search by half a key that stops at the wrong one of two entries."""
    docs = documents(rows)
    for i, document in enumerate(docs):
        document.__dict__["key"] = b"\x80" * 8 + bytes([255 - i]) * 8
    build(tmp_path / "c", FULL_ONLY, docs, head, CHAT, show_progress=False)
    cache = ReferenceCache(tmp_path / "c", FULL_ONLY)
    for document, row in zip(docs, rows, strict=True):
        found = cache.look_up(AnswerTokens.of([document], CHAT))
        assert np.abs(found.full - expected(head.model, row)[0]).max() < HALF
    stranger = Document(docs[0].input_ids, docs[0].supervised)
    stranger.__dict__["key"] = b"\x80" * 8 + b"\x01" * 8
    with pytest.raises(PactError, match="would train without PACT"):
        cache.look_up(AnswerTokens.of([stranger], CHAT))


@pytest.mark.parametrize("view", ["full", "answer_only"])
def test_a_flipped_bit_is_found_at_lookup(head: SubsetHead, rows: list[Row], tmp_path: Path, view: str) -> None:
    """Prevents: a failing disk, or an edited file, changing the reference of one document."""
    made(tmp_path / "c", head, rows)
    flip_bit(tmp_path / "c" / f"{view}.npy", -1)  # in the document stored last, which has the greatest key
    cache = ReferenceCache(tmp_path / "c", IDENTITY)
    *intact, damaged = sorted(documents(rows), key=lambda d: d.key)
    cache.look_up(AnswerTokens.of(intact, CHAT))
    with pytest.raises(PactError) as caught:
        cache.look_up(AnswerTokens.of([damaged], CHAT))
    assert damaged.key.hex() in caught.value.got
    assert str(tmp_path / "c") in caught.value.remedy


def _edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, value in changes.items():
            if value is None:
                del manifest[name]
            else:
                manifest[name] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def _cut(name: str, by: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by]) and None


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "no index": lambda f: (f / "index.npy").unlink(),
    "no full view": lambda f: (f / "full.npy").unlink(),
    "no other view": lambda f: (f / "answer_only.npy").unlink(),
    "cut manifest": _cut("manifest.json", 9),
    "cut index": _cut("index.npy", 4),
    "cut full view": _cut("full.npy", 2),
    "cut other view": _cut("answer_only.npy", 64),
    "empty full view": lambda f: (f / "full.npy").write_bytes(b""),
    "edited index": lambda f: flip_bit(f / "index.npy", -20),
    "edited index header": lambda f: flip_bit(f / "full.npy", 0),
    "views exchanged in size": lambda f: np.save(f / "full.npy", np.zeros((3, 4), np.float16)),
    "another type": lambda f: np.save(f / "full.npy", np.load(f / "full.npy").astype(np.float32)),
    "more answer tokens": _edit(answer_tokens=10**6),
    "fewer answer tokens": _edit(answer_tokens=1),
    "other safety tokens": _edit(safety_tokens=3),
    "another checksum": _edit(index="0" * 32),
    "no checksum": _edit(index=None),
    "no size": _edit(answer_tokens=None),
    "another reach": _edit(reached_tokens=1),
    "other documents": _edit(documents=3),
    "no identity": _edit(identity=None),
    "an identity that is a list": _edit(identity=[1]),
    "a manifest that is a list": lambda f: (f / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_at_opening(
    head: SubsetHead, rows: list[Row], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    """Prevents: a run held to whatever bytes are left of an interrupted copy."""
    folder = tmp_path / "c"
    made(folder, head, rows)
    damage(folder)
    with pytest.raises(PactError) as caught:
        ReferenceCache(folder, IDENTITY)
    assert caught.value.consequence == "The run would be held to a wrong reference."


@pytest.mark.parametrize("field", ["model", "data", "format", "reach"])
def test_another_identity_is_named(head: SubsetHead, rows: list[Row], tmp_path: Path, field: str) -> None:
    """Prevents: another model's reference, and an error that leaves the user to guess what differs."""
    made(tmp_path / "c", head, rows)
    with pytest.raises(PactError, match="another model's or other data's reference") as caught:
        ReferenceCache(tmp_path / "c", {**IDENTITY, field: "other"})
    assert caught.value.expected == f"{field} = other"
    with pytest.raises(PactError) as caught:
        ReferenceCache(tmp_path / "c", {**IDENTITY, "new": 1})
    assert caught.value.expected == "new = 1"


def test_another_format_is_named(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a cache of an older version being read as damage, or as values, where no identity is asked for."""
    made(tmp_path / "c", head, rows, {**IDENTITY, "format": FORMAT - 1})
    with pytest.raises(PactError) as caught:
        ReferenceCache(tmp_path / "c", None)
    assert caught.value.expected == f"format = {FORMAT}"


def test_a_finished_cache_is_found_again(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: paying for the reference in every run; and taking another identity's cache for it."""
    calls = []
    head.base.get_decoder().register_forward_hook(lambda *_: calls.append(1))
    docs = documents(rows)
    cache, built = open_or_build(tmp_path, IDENTITY, docs, head, CHAT, show_progress=False)
    assert built
    passes = len(calls)
    assert passes > 0
    again, built = open_or_build(tmp_path, IDENTITY, docs, head, CHAT, show_progress=False)
    assert not built
    assert len(calls) == passes
    assert again.folder == cache.folder
    other, built = open_or_build(tmp_path, FULL_ONLY, docs, head, CHAT, show_progress=False)
    assert built
    assert other.folder != cache.folder


def test_a_cache_appears_only_when_whole(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: an interrupted build being taken for a finished one by the next run."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = head.base.get_decoder().register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(tmp_path, IDENTITY, documents(rows), head, CHAT, show_progress=False)
    hook.remove()
    _, built = open_or_build(tmp_path, IDENTITY, documents(rows), head, CHAT, show_progress=False)
    assert built


def test_a_race_keeps_the_first(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: two processes on one machine corrupting, or failing over, the cache that both build."""
    first = made(tmp_path / "c", head, rows)
    build(tmp_path / "c", IDENTITY, documents(rows), head, CHAT, show_progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert (
        look_up(ReferenceCache(first.folder, IDENTITY), padded(rows))[1].full == look_up(first, padded(rows))[1].full
    ).all()


def test_a_model_that_is_not_finite_is_refused(rows: list[Row], tmp_path: Path) -> None:
    """Prevents: NaN stored as the reference, and then as the loss of every step."""
    model = tiny.llama()
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(PactError, match="finite logits"):
        build(tmp_path / "c", IDENTITY, documents(rows), SubsetHead(model, IDS), CHAT, show_progress=False)
    assert not (tmp_path / "c").exists()


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
        build(tmp_path / "c", IDENTITY, documents(rows), head, ChatFormat(), show_progress=False)
