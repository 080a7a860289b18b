"""Judges: what an answer to a prompt was. Those of rules are here, those of models in `model_judges`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from pact_plugins.errors import PactError
from pact_plugins.evaluation.phrases import has_refusal_phrase
from pact_plugins.openings import is_affirmative_opening, is_refusal

Verdict = Literal["refusal", "compliance", "other"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_BOTH: frozenset[Verdict] = frozenset(("refusal", "compliance"))


class Judge(Protocol):
    """Says of each answer whether it refuses, complies, or does neither."""

    @property
    def name(self) -> str:
        """What the judge is asked for by, and reported under."""
        ...

    @property
    def tells(self) -> frozenset[Verdict]:
        """The verdicts that it can give beside `other`; no rate is reported of what a judge cannot see."""
        ...

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each answer, in order.

        Args:
            prompts: what was asked, one entry an answer.
            answers: what the model said.
        """
        ...


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """A judge that grades answers, and whose verdict follows from the grade."""

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        """A score for each answer, in order: 0 for no help at all, 1 for the most."""
        ...

    def verdict(self, score: float) -> Verdict:
        """What a score says."""
        ...


@dataclass(frozen=True)
class Rule:
    """A judge that reads one answer at a time."""

    name: str
    tells: frozenset[Verdict]
    verdict: Callable[[str, str], Verdict]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        return [self.verdict(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def _opening(_prompt: str, answer: str) -> Verdict:
    if is_refusal(answer):
        return "refusal"
    return "compliance" if is_affirmative_opening(answer) else "other"


def _phrases(_prompt: str, answer: str) -> Verdict:
    return "refusal" if has_refusal_phrase(answer) else "compliance"


def load(description: str) -> Judge:
    """The judge that `description` names.

    `opening`: how the answer begins; a refusal, an affirmative opening ("Sure, ..."), or neither.
    `phrases`: a refusal if it holds a refusal phrase anywhere, else compliance, as published prefix lists count.
    `llama-guard[:PATH]`: Llama Guard 3 through its own chat template; unsafe answers comply. It cannot see refusals.
    `strongreject[:FILE][:PATH]`, `harmbench[:FILE][:PATH]`: the fine-tuned judges of these benchmarks, under the
    prompts that their authors publish in FILE; see `benchmark_judges`. Neither can see refusals.
    `classifier:PATH[:LABEL=VERDICT,...]`: a transformers sequence classifier that reads the answer alone.
    `MODULE:FUNCTION`: a function of prompt and answer that returns one of the three verdicts.

    Raises:
        PactError: there is no such judge, or its model or function cannot be loaded.
    """
    name, _, argument = description.partition(":")
    if description == "opening":
        return Rule("opening", _BOTH, _opening)
    if description == "phrases":
        return Rule("phrases", _BOTH, _phrases)
    if name in ("llama-guard", "classifier"):
        from pact_plugins.evaluation import model_judges

        return model_judges.load(name, argument)
    if name in ("strongreject", "harmbench"):
        from pact_plugins.evaluation import benchmark_judges

        return benchmark_judges.load(name, argument)
    if argument and name not in ("opening", "phrases"):
        return _of_function(description)
    known = ("opening", "phrases", "llama-guard", "strongreject", "harmbench", "classifier:PATH", "MODULE:FUNCTION")
    near = get_close_matches(description, known, 1, cutoff=0.5)
    raise PactError(
        expected=f"a judge: {', '.join(known)}",
        got=f"`{description}`",
        consequence="No answer could be judged.",
        remedy=f"Did you mean `{near[0]}`?" if near else "Name one of them.",
    )


def _of_function(description: str) -> Judge:
    function = user_function(description, "a judge")

    def verdict(prompt: str, answer: str) -> Verdict:
        found = function(prompt, answer)
        if found not in VERDICTS:
            raise PactError(
                expected=f"`{description}` to return one of {', '.join(VERDICTS)}",
                got=repr(found),
                consequence="The answer would have been counted as neither a refusal nor compliance.",
                remedy="Return one of the three strings.",
            )
        return found

    return Rule(description, _BOTH, verdict)


def user_function(description: str, purpose: str) -> Callable[..., Any]:
    """The function `module:function`, the module taken from the current folder or from the environment.

    Raises:
        PactError: it cannot be imported, or is not callable.
    """
    module, _, name = description.partition(":")
    if os.getcwd() not in sys.path:  # an installed command does not have it, unlike `python -m`
        sys.path.append(os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
        problem = None if callable(function) else f"{name} is a {type(function).__name__}"
    except Exception as error:  # a user's module may raise anything
        raise _no_function(description, purpose, f"{type(error).__name__}: {error}") from error
    if problem:
        raise _no_function(description, purpose, problem)
    return function


def _no_function(description: str, purpose: str, got: str) -> PactError:
    return PactError(
        expected=f"{purpose}, or a function `module:function`, under `{description}`",
        got=got,
        consequence="No answer could be judged.",
        remedy="Check both names; the module is looked for in the current folder and in the environment.",
    )
