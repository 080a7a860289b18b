"""Answers that survive a kill, and files that must not be continued."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pact_plugins.errors import PactError
from pact_plugins.evaluation import engines, generation
from pact_plugins.evaluation.engines import Generation, transformers_engine
from pact_plugins.evaluation.generation import Answer, Speaker, generate
from pact_plugins.evaluation.prompts import Prompt, PromptSet
from pact_plugins.evaluation.turns import Turn
from pact_plugins.model import progress
from tests import tiny

SETS = [
    PromptSet("a", "harmful", tuple(Prompt(str(i), "why " * (1 + 7 * i % 5) + str(i)) for i in range(5))),
    PromptSet("b", "harmless", tuple(Prompt(str(i), "how? " * (1 + i)) for i in range(4))),
]
GREEDY, SAMPLED = Generation(max_new_tokens=6), Generation(max_new_tokens=6, temperature=1.5, seed=3)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Several batches of one to three prompts, on one thread: tiny models only wait for a second one."""
    monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 96)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def answers(path: Path, settings: Generation = GREEDY, seed: int = 0, sets: list[PromptSet] = SETS) -> list[Answer]:
    model, tokenizer = tiny.llama(seed), tiny.tokenizer()
    torch.manual_seed(len(path.name))  # what a run draws must not depend on what was drawn before it
    speaker = Speaker.of("tiny", None, model, tokenizer)
    engine = transformers_engine(model, tokenizer, settings)
    return generate(engine, tokenizer, speaker, sets, settings, path)


def test_answers_are_the_models_own(tmp_path: Path) -> None:
    """Prevents answers that belong to another prompt of the batch, or that the padding has entered."""
    model, tokenizer = tiny.llama().eval(), tiny.tokenizer()
    found = answers(tmp_path / "a.jsonl")
    assert [(a.prompt_set, a.id, a.prompt) for a in found] == [(s.name, p.id, p.text) for s in SETS for p in s.prompts]
    for answer in found:
        messages = [{"role": "user", "content": answer.prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        start = len(ids)
        while len(ids) < start + 6 and ids[start:][-1:] != [1]:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer.response == tokenizer.decode(ids[start:], skip_special_tokens=True)
        assert answer.ended == (ids[-1] == 1)
    assert len({a.response for a in found}) > 3


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_killed_run_goes_on(settings: Generation, tmp_path: Path) -> None:
    """Prevents a file that shows where the run was killed: asked twice, left out, in another order, or half a line.

    The file is cut at every kind of place that a kill may leave: nothing, whole batches, a part of one, a torn line.
    """
    whole = tmp_path / "whole.jsonl"
    expected = answers(whole, settings)
    content = whole.read_bytes()
    assert len(content.splitlines()) == len(expected) == 9
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for cut in (0, *ends, ends[0] + 1, ends[3] - 1, ends[5] + 40):
        part = tmp_path / "part.jsonl"
        part.write_bytes(content[:cut])
        assert answers(part, settings) == expected
        assert part.read_bytes() == content


def test_a_conversation_is_asked_as_one(tmp_path: Path) -> None:
    """Prevents a system prompt or earlier turns that are read and not asked, or answers to them taken for others'."""
    before = (Turn("system", "Be brief."), Turn("user", "why?"), Turn("assistant", "so"))
    sets = [PromptSet("a", "harmful", (Prompt("1", "and now?", before=before), Prompt("2", "and now?")))]
    found = answers(tmp_path / "a.jsonl", sets=sets)
    model, tokenizer = tiny.llama().eval(), tiny.tokenizer()
    chat = [*(turn.as_message() for turn in before), {"role": "user", "content": "and now?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    written = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)[0, len(ids) :]
    assert found[0].response == tokenizer.decode(written, skip_special_tokens=True)
    assert found[0].response != found[1].response
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert [turn["role"] for turn in row["before"]] == ["system", "user", "assistant"]
    assert answers(tmp_path / "a.jsonl", sets=sets) == found
    other = [PromptSet("a", "harmful", (Prompt("1", "and now?", before=before[:1]), Prompt("2", "and now?")))]
    with pytest.raises(PactError, match="before"):
        answers(tmp_path / "a.jsonl", sets=other)


def test_a_log_gets_a_line_within_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents minutes of silence where a model writes a whole batch, and nobody knows whether it hangs."""
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", 0.0)
    monkeypatch.setattr(generation, "TOKENS_PER_BATCH", 10_000)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    model, tokenizer, how = tiny.llama(), tiny.tokenizer(), Generation(max_new_tokens=4)
    sets = [PromptSet("a", "harmful", tuple(Prompt(str(i), "why?") for i in range(8)))]
    engine = transformers_engine(model, tokenizer, how)
    generate(engine, tokenizer, Speaker("tiny", None, "f"), sets, how, tmp_path / "a.jsonl")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", about")[0] for line in lines] == [f"PACT: asking tiny: {n} of 8" for n in (2, 4, 6)]


def test_a_finished_run_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a second evaluation with other judges from generating everything again."""
    expected = answers(tmp_path / "a.jsonl")
    monkeypatch.setattr(engines, "continuations", lambda *_a: pytest.fail("asked"))
    assert answers(tmp_path / "a.jsonl") == expected


def test_answers_are_kept_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents answers that are only written at the end, when there is none."""
    whole, path = tmp_path / "whole.jsonl", tmp_path / "a.jsonl"
    expected = answers(whole)
    asked: list[int] = []
    real = engines.continuations

    def dies(model: Any, chats: list[list[int]], length: int, *how: Any) -> list[list[int]]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(len(chats))
        return real(model, chats, length, *how)

    monkeypatch.setattr(engines, "continuations", dies)
    with pytest.raises(KeyboardInterrupt):
        answers(path)
    assert len(path.read_bytes().splitlines()) == sum(asked) < len(expected)
    monkeypatch.setattr(engines, "continuations", real)
    assert answers(path) == expected
    assert path.read_bytes() == whole.read_bytes()


def test_sampling_has_a_seed(tmp_path: Path) -> None:
    """Prevents samples that no one can draw again, or a seed or temperature that changes nothing."""
    first, again, other, greedy = (
        [a.response for a in answers(tmp_path / f"{'x' * i}.jsonl", settings)]
        for i, settings in enumerate((SAMPLED, SAMPLED, Generation(6, 1.5, seed=4), GREEDY), 1)
    )
    assert first == again
    assert first not in (other, greedy)


def test_sampling_leaves_the_random_state_alone(tmp_path: Path) -> None:
    """Prevents an evaluation during training from changing what is drawn after it."""
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    state = torch.get_rng_state()
    speaker = Speaker("tiny", None, "")
    engine = transformers_engine(model, tokenizer, SAMPLED)
    generate(engine, tokenizer, speaker, SETS, SAMPLED, tmp_path / "a.jsonl")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"settings": Generation(max_new_tokens=7)}, "generation"),
        ({"settings": SAMPLED}, "generation"),
        ({"seed": 1}, "fingerprint"),
        ({"sets": SETS[:1]}, "instead of"),
        ({"sets": [SETS[0], PromptSet("c", "harmless", SETS[1].prompts)]}, "prompt_set"),
        ({"sets": [SETS[0].sample(2), SETS[1].sample(2)]}, "instead of"),
    ],
)
def test_another_run_is_not_continued(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    """Prevents the answers of two models, or of two ways to decode, from being counted as one."""
    path = tmp_path / "a.jsonl"
    answers(path)
    content = path.read_bytes()
    with pytest.raises(PactError) as caught:
        answers(path, **change)
    assert words in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("line", [b"{}\n", b"[1]\n", b"hello\n", b"\xff\n", b"\n", b"hello", b'{"prompt_set": "mine"}'])
def test_another_file_is_not_continued(line: bytes, tmp_path: Path) -> None:
    """Prevents a file of the user's own from being cut or added to."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(line)
    with pytest.raises(PactError, match="in line 1"):
        answers(path)
    assert path.read_bytes() == line


def test_too_many_answers(tmp_path: Path) -> None:
    """Prevents answers behind the last prompt from being ignored."""
    path = tmp_path / "a.jsonl"
    answers(path)
    content = path.read_bytes()
    first = content.splitlines(keepends=True)[0]
    path.write_bytes(content + first)
    with pytest.raises(PactError, match="10 answers for 9 prompts"):
        answers(path)
    path.write_bytes(content + first[:50])
    with pytest.raises(PactError, match="in line 10"):
        answers(path)


def test_a_line_says_all_that_its_answer_depends_on(tmp_path: Path) -> None:
    """Prevents answers that no one can trace to a model and its settings."""
    answers(tmp_path / "a.jsonl", SAMPLED)
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert {"prompt_set", "kind", "id", "prompt", "response", "ended", "model", "adapter", "fingerprint"} < set(row)
    assert row["generation"] == {"max_new_tokens": 6, "temperature": 1.5, "seed": 3, "engine": "transformers"}


def test_another_template_is_another_speaker() -> None:
    """Prevents answers under a changed chat template from being continued under the new one."""
    model, tokenizer = tiny.llama(), copy.deepcopy(tiny.tokenizer())
    before = Speaker.of("tiny", None, model, tokenizer)
    assert before == Speaker.of("tiny", None, tiny.llama(), tiny.tokenizer())
    tokenizer.chat_template += " "
    assert Speaker.of("tiny", None, model, tokenizer) != before


def test_a_chat_template_is_needed(tmp_path: Path) -> None:
    """Prevents bare prompts, which a chat model was never asked."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    engine = transformers_engine(tiny.llama(), bare, GREEDY)
    with pytest.raises(PactError, match="chat template") as caught:
        generate(engine, bare, Speaker("tiny", None, ""), SETS, GREEDY, tmp_path / "a.jsonl")
    assert "pact.safety_tokens" not in str(caught.value)
