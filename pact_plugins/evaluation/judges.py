"""Judges: what an answer to a prompt was. Rules are here, models in `model_judges`, served ones in `endpoint`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, get_args

from pact_plugins.config import DEFAULT_JUDGES as DEFAULT_JUDGES
from pact_plugins.errors import PactError
from pact_plugins.evaluation.phrases import has_refusal_phrase
from pact_plugins.method import refusals
from pact_plugins.method.openings import is_refusal
from pact_plugins.method.refusals import Verdict

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_BOTH: frozenset[Verdict] = frozenset(("refusal", "compliance"))

FOR_COMPARISON = ("opening", "phrases")
"""Judges whose rates stand beside published ones. Of some models they miss most refusals: no verdict is theirs."""


@dataclass(frozen=True)
class Serving:
    """Where and how served judges are asked.

    Attributes:
        url: of the server, up to and with its version (`http://localhost:8000/v1`); `OPENAI_BASE_URL` if None.
        prompt: the file of the user's rubric, with {prompt} and {response}; ours if None.
        folder: in which the replies are kept as they come; None keeps none.
        at_once: requests that are on their way at the same time.
        timeout: seconds that one of them may take.
        retries: of each, by the client, where the server is down, busy or slow.
    """

    url: str | None = None
    prompt: Path | None = None
    folder: Path | None = None
    at_once: int = 8
    timeout: float = 120.0
    retries: int = 4


class Judge(Protocol):
    """Says of each answer whether it refuses, helps in part, complies, or does neither."""

    @property
    def name(self) -> str:
        """What the judge is asked for by, and reported under."""
        ...

    @property
    def tells(self) -> frozenset[Verdict]:
        """The verdicts that it can give, `other` apart; no rate is reported of what a judge cannot see."""
        ...

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """A verdict for each answer, in order.

        Args:
            prompts: what was asked, one entry an answer.
            answers: what the model said.
        """
        ...


@dataclass(frozen=True)
class RuleJudge:
    """A judge that reads one answer at a time."""

    name: str
    tells: frozenset[Verdict]
    verdict: Callable[[str, str], Verdict]

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        return [self.verdict(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


_RULES = (
    RuleJudge("stance", frozenset(VERDICTS) - {"other"}, lambda prompt, answer: refusals.judge([prompt], [answer])[0]),
    RuleJudge("opening", frozenset(("refusal",)), lambda _, answer: "refusal" if is_refusal(answer) else "other"),
    RuleJudge("phrases", _BOTH, lambda _, answer: "refusal" if has_refusal_phrase(answer) else "compliance"),
)


def load(description: str, serving: Serving | None = None) -> Judge:
    """The judge that `description` names.

    `stance`: refusal, partial or compliance, by what the answer says to what was asked (see `refusals`).
    `opening`: a refusal if the answer begins by declining. For comparison.
    `phrases`: a refusal if it holds a refusal phrase anywhere, else compliance, as published prefix lists count. For
    comparison.
    `llama-guard[:PATH]`: Llama Guard 3 through its own chat template; unsafe answers comply. It cannot see refusals.
    `endpoint:MODEL[:WORD=VERDICT,...]`: a model behind an OpenAI-compatible server, by a rubric; see `endpoint`.
    `classifier:PATH[:LABEL=VERDICT,...]`: a transformers sequence classifier that reads the answer alone.
    `MODULE:FUNCTION`: a function of prompt and answer that returns a verdict.

    Args:
        description: one of these.
        serving: where and how served judges are asked; by the environment and our rubric without.

    Raises:
        PactError: there is no such judge, or its model or function cannot be loaded.
    """
    name, _, argument = description.partition(":")
    for rule in _RULES:
        if description == rule.name:
            return rule
    if name in ("llama-guard", "classifier"):
        from pact_plugins.evaluation import model_judges

        return model_judges.load(name, argument)
    if name == "endpoint":
        from pact_plugins.evaluation import endpoint

        return endpoint.load(argument, serving or Serving())
    if argument and name not in (*DEFAULT_JUDGES, *FOR_COMPARISON):
        return _of_function(description)
    models = ("llama-guard", "classifier:PATH", "endpoint:MODEL", "MODULE:FUNCTION")
    known = (*DEFAULT_JUDGES, *FOR_COMPARISON, *models)
    near = get_close_matches(description, known, 1, cutoff=0.5)
    raise PactError(
        expected=f"a judge: {', '.join(known)}",
        got=f"`{description}`",
        consequence="No answer could be judged.",
        remedy=f"Did you mean `{near[0]}`?" if near else "Name one of them.",
    )


def named_and_mapped(argument: str) -> tuple[str, dict[str, str]]:
    """A model, and the verdict of each thing that it may say, of `MODEL[:SAID=VERDICT,...]`.

    The map stands behind the last colon, if an equals sign does: names and paths hold colons as well.
    """
    model, _, written = argument.rpartition(":")
    if "=" not in written:
        return argument, {}
    pairs = [pair.partition("=") for pair in written.split(",") if pair]
    return model, {said.strip(): verdict.strip() for said, _, verdict in pairs}


def _of_function(description: str) -> Judge:
    function = user_function(description, "a judge")

    def verdict(prompt: str, answer: str) -> Verdict:
        found = function(prompt, answer)
        if found not in VERDICTS:
            raise PactError(
                expected=f"`{description}` to return one of {', '.join(VERDICTS)}",
                got=repr(found),
                consequence="The answer would have been counted as neither a refusal nor compliance.",
                remedy="Return one of these strings.",
            )
        return found

    return RuleJudge(description, _BOTH, verdict)


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
    except Exception as error:  # a user's module may raise anything
        raise _no_function(description, purpose, f"{type(error).__name__}: {error}") from error
    if not callable(function):
        raise _no_function(description, purpose, f"{name} is a {type(function).__name__}")
    return function


def _no_function(description: str, purpose: str, got: str) -> PactError:
    return PactError(
        expected=f"{purpose}, or a function `module:function`, under `{description}`",
        got=got,
        consequence="No answer could be judged.",
        remedy="Check both names; the module is looked for in the current folder and in the environment.",
    )
