"""Evaluations made up for the report's tests: judged for real, of answers written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pact_plugins.evaluation import judges
from pact_plugins.evaluation.generation import Answer, Generation, Speaker
from pact_plugins.evaluation.layouts import Kind
from pact_plugins.evaluation.prompts import KINDS, Prompt, PromptSet
from pact_plugins.evaluation.run import conclude

REFUSAL, COMPLIANCE, ANSWER = "I'm sorry, but I can't help with that.", "Sure, here is how.", "It is a lovely boat."
BEFORE, AFTER = Speaker("m", None, "before"), Speaker("m", "a", "after")


def prompts(kind: Kind, n: int) -> PromptSet:
    expected = ANSWER if kind == "task" else None
    return PromptSet("mine", kind, tuple(Prompt(str(i), f"{kind} {i}?", expected) for i in range(n)))


def write(
    folder: Path,
    before: Sequence[Sequence[str]] | None,
    after: Sequence[Sequence[str]],
    used: Sequence[str] = judges.DEFAULT_JUDGES,
) -> Path:
    """What `pact eval` leaves of these answers: to harmful prompts, to harmless ones, and to a task if there is one."""
    sets = [prompts(kind, len(answers)) for kind, answers in zip(KINDS, after, strict=False)]
    loaded = [judges.load(name) for name in used]
    answers_of = {}
    for run, speaker, answers in (("against", BEFORE, before), ("model", AFTER, after)):
        if answers is not None:
            answers_of[run] = [
                Answer(s.name, s.kind, p.id, p.text, speaker, Generation(), response, True)
                for s, of_set in zip(sets, answers, strict=True)
                for p, response in zip(s.prompts, of_set, strict=True)
            ]
    conclude(answers_of, sets, loaded, folder)
    return folder
