"""Answers of a model to prompt sets, kept in a file as they come: a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import nn

from pact_plugins.chat.fingerprints import digest, tokenizer_fingerprint
from pact_plugins.errors import PactError
from pact_plugins.evaluation.engines import Engine, Generation
from pact_plugins.evaluation.layouts import Kind
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.evaluation.turns import Turn
from pact_plugins.method.prompting import as_chats, up_to_end
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.forward import batches_by_length
from pact_plugins.model.progress import bar
from pact_plugins.model.ranks import ALONE, Ranks

TOKENS_PER_BATCH = 16384
"""Tokens of one batch, prompts and answers at their longest: 2 GiB of keys and values in an 8B Llama."""


@dataclass(frozen=True)
class Speaker:
    """Who answers.

    Attributes:
        model: folder or name on the hub.
        adapter: the same of the PEFT adapter on top, if there is one.
        fingerprint: of weights, tokenizer and chat template: a model that was trained on is another, under any name.
    """

    model: str
    adapter: str | None
    fingerprint: str

    @classmethod
    def of(
        cls, name: str, adapter: str | None, model: nn.Module, tokenizer: Any, *, fingerprint: str | None = None
    ) -> Speaker:
        """Whoever `model` is now; `fingerprint` is that of its weights, if it is known: it costs a pass over them."""
        weights = fingerprint or model_fingerprint(model)
        return cls(name, adapter, digest([weights, tokenizer_fingerprint(tokenizer), tokenizer.chat_template]))

    def __str__(self) -> str:
        return f"{self.model} + {self.adapter}" if self.adapter else self.model


@dataclass(frozen=True)
class Answer:
    """An answer with all that it depends on: one line of the file.

    Attributes:
        prompt_set: name of the set.
        kind: of the set.
        id: of the prompt within the set.
        prompt: what the last user turn said.
        speaker: who answered.
        generation: how.
        response: the answer without its end token.
        ended: whether the model ended it, rather than the limit on its tokens.
        before: the turns before the last one.
    """

    prompt_set: str
    kind: Kind
    id: str
    prompt: str
    speaker: Speaker
    generation: Generation
    response: str = ""
    ended: bool = False
    before: tuple[Turn, ...] = ()

    def as_row(self) -> dict[str, Any]:
        """As a line of the file holds it: who answered stands beside the rest."""
        row = asdict(self)
        row["before"] = [turn.as_message() for turn in self.before]
        return {**{k: v for k, v in row.items() if k != "speaker"}, **row["speaker"]}


def generate(
    engine: Engine,
    tokenizer: Any,
    speaker: Speaker,
    sets: Sequence[PromptSet],
    generation: Generation,
    path: Path,
    *,
    ranks: Ranks = ALONE,
) -> list[Answer]:
    """The answers of a model to all prompts, in their order, of which those in `path` are read and not asked again.

    Batches depend on the prompts alone, and each is sampled from its own seed: the file of a run that was stopped and
    started again is the file of a run that was not. Each rank asks a part of them, and is given all answers; the first
    one reads and writes the file.

    Args:
        path: a JSONL file, made or continued: an object an answer, in the order of the batches.
        ranks: of the run, each with the same model and prompts.

    Raises:
        PactError: the tokenizer has no chat template, or the file holds answers of another run.
    """
    asked = [
        Answer(s.name, s.kind, p.id, p.text, speaker, generation, before=p.before) for s in sets for p in s.prompts
    ]
    chats = [list(p.ids) for s in sets for p in s.prompts]
    to_render = [i for i, ids in enumerate(chats) if not ids]
    for i, ids in zip(to_render, _chats(tokenizer, [asked[i] for i in to_render]), strict=True):
        chats[i] = ids
    batches = batches_by_length([len(chat) + generation.max_new_tokens for chat in chats], TOKENS_PER_BATCH)
    order = [i for batch in batches for i in batch]
    what = f"PACT: asking {speaker.adapter or speaker.model}"
    known = ranks.first(lambda: _read(path, [asked[i] for i in order]), what)
    answers = dict(zip(order, known, strict=False))
    to_ask = [number for number, batch in enumerate(batches) if not all(i in answers for i in batch)]

    def responses(number: int) -> list[tuple[str, bool]]:
        # The whole batch even where a part is there: its width enters into each answer's rounding.
        # One number from two: batches must not repeat each other's random numbers, nor those of the next seed.
        seed = int(digest([generation.seed, number])[:15], 16)
        share = len(batches[number]) / generation.max_new_tokens
        written = engine.answer(
            [chats[i] for i in batches[number]], seed, lambda step: told(behind[number] + step * share)
        )
        kept = [up_to_end(tokens, engine.ends) for tokens in written]
        return [(tokenizer.decode(ids, skip_special_tokens=True), bool(engine.ends & set(ids[-1:]))) for ids in kept]

    if ranks.is_first:
        path.parent.mkdir(parents=True, exist_ok=True)
    behind = [0, *accumulate(map(len, batches))]
    shown = bar(what, len(asked), ranks.is_first, done=behind[len(batches) - len(to_ask)])
    with path.open("ab") if ranks.is_first else nullcontext() as file, shown as told:
        asking = ranks.merged(to_ask, map(responses, ranks.part(to_ask)), what)
        for number, found in asking:
            missing = [i for i in batches[number] if i not in answers]
            for i, (response, has_ended) in zip(batches[number], found, strict=True):
                answers.setdefault(i, replace(asked[i], response=response, ended=has_ended))
            if file is not None:
                file.write(b"".join(_line(answers[i]) for i in missing))
                file.flush()
                os.fsync(file.fileno())
            told(behind[number + 1])
    return [answers[i] for i in range(len(asked))]


def first_speaker(path: Path) -> Speaker:
    """Who gave the first answer of a file.

    Raises:
        PactError: there is none.
    """
    try:
        row = json.loads(path.read_bytes().partition(b"\n")[0])
        return Speaker(row["model"], row["adapter"], row["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _other_run(path, 0, f"{type(error).__name__}: {error}") from error


def _chats(tokenizer: Any, asked: Sequence[Answer]) -> list[list[int]]:
    """Token ids of each conversation, up to the answer."""
    told = [
        [*(turn.as_message() for turn in a.before), {"role": "user", "content": a.prompt}] if a.before else a.prompt
        for a in asked
    ]
    try:
        return as_chats(tokenizer, told, "ask the model", remedy="Set the model's own chat template.")
    except PactError:
        raise
    except Exception as error:  # a template may raise anything: it is the model author's program
        roles = sorted({turn.role for a in asked for turn in a.before} | {"user"})
        raise PactError(
            expected=f"a chat template that takes conversations of the roles {', '.join(roles)}",
            got=f"{type(error).__name__}: {error}",
            consequence="The model could not be asked.",
            remedy="Ask without `--system` and without rows that have these roles, or set another chat template.",
        ) from error


def _line(answer: Answer) -> bytes:
    return (json.dumps(answer.as_row(), ensure_ascii=False) + "\n").encode()


def _read(path: Path, expected: Sequence[Answer]) -> list[Answer]:
    """The answers in the file, which must be the first ones of `expected`; an unfinished last line is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    answers: list[Answer] = []
    for number, line in enumerate(lines):
        if number == len(expected):
            raise _other_run(path, number, f"{len(lines)} answers for {len(expected)} prompts")
        try:
            found = json.loads(line)
            response, ended = found["response"], found["ended"]
        except (ValueError, KeyError, TypeError) as error:
            raise _other_run(path, number, f"{type(error).__name__}: {error}") from error
        answer = replace(expected[number], response=response, ended=ended)
        wanted = answer.as_row()
        if found != wanted:
            differs = [k for k in wanted if found.get(k) != wanted[k]] or ["a key of its own"]
            got = f"{differs[0]} {found.get(differs[0])!r} instead of {wanted.get(differs[0])!r}"
            raise _other_run(path, number, got)
        answers.append(answer)
    torn = content[len(whole) :]
    if torn:
        # Only a line of ours is cut off: a file of the user's may lack its last line break as well.
        start = _line(expected[len(lines)]).partition(b'"response"')[0] if len(lines) < len(expected) else b""
        if not start or torn[: len(start)] != start[: len(torn)]:
            raise _other_run(path, len(lines), "a line without its end that is no answer to the next prompt")
        os.truncate(path, len(whole))
    return answers


def _other_run(path: Path, number: int, got: str) -> PactError:
    return PactError(
        expected=f"{path} to hold answers of this model to these prompts with these settings, or not to be there",
        got=f"in line {number + 1} {got}",
        consequence="Answers of two runs would have been counted as one.",
        remedy="Start it as it was started before, give another folder, or remove the file.",
    )
