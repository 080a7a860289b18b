"""Scorers of tasks: how right a response is, beside the expected answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real

from pact_plugins.errors import PactError
from pact_plugins.evaluation.judges import user_function
from pact_plugins.evaluation.prompts import Prompt
from pact_plugins.method.refusals.text import said

Scorer = Callable[[str, str, str], object]
"""From prompt, response and expected answer to whether it is right, or to a score from 0 to 1."""

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact(_prompt: str, response: str, expected: str) -> bool:
    """Whether the response is the expected answer, but for space around it."""
    return response.strip() == expected.strip()


def normalised(_prompt: str, response: str, expected: str) -> bool:
    """The same without case, punctuation, English articles and repeated space, as SQuAD counts exact matches.

    Source: Rajpurkar et al. (2016), arXiv 1606.05250.
    """
    return _words(response) == _words(expected)


def last_number(_prompt: str, response: str, expected: str) -> bool:
    """Whether the last number in the response is the last number in the expected answer, as GSM8K is scored."""
    found, wanted = _last(response), _last(expected)
    if wanted is None:
        raise PactError(
            expected="a number in every expected answer, for the scorer `last-number`",
            got=repr(expected[:80]),
            consequence="No response to it could be right.",
            remedy="Correct the row, or give another `--scorer`.",
        )
    return found == wanted


def f1(_prompt: str, response: str, expected: str) -> float:
    """F1 of the words that response and expected answer share, normalised, as SQuAD scores answers.

    With precision p and recall r of the words, each as often as it occurs: 2 p r / (p + r).
    """
    found, wanted = _words(response), _words(expected)
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted))


SCORERS: dict[str, Scorer] = {"exact": exact, "normalised": normalised, "last-number": last_number, "f1": f1}


def load(description: str) -> Scorer:
    """The scorer that `description` names.

    One of `SCORERS`; `regex:PATTERN`, whose first group (the whole match without one) in the response must be that in
    the expected answer, or all of the expected answer where nothing in it matches; or `MODULE:FUNCTION` of prompt,
    response and expected answer. What a model thinks in tags before its answer is left out, but for a function, which
    gets the whole response.

    Raises:
        PactError: there is no such scorer, the pattern is none, or the function cannot be imported.
    """
    name, _, argument = description.partition(":")
    if description in SCORERS:
        return _of_what_is_said(SCORERS[description])
    if name == "regex" and argument:
        return _of_what_is_said(_by_pattern(argument))
    if argument and name not in SCORERS and name != "regex":
        return user_function(description, "a scorer")
    known = (*SCORERS, "regex:PATTERN", "MODULE:FUNCTION")
    near = get_close_matches(description, known, 1)
    raise PactError(
        expected=f"a scorer: {', '.join(known)}",
        got=f"`{description}`",
        consequence="No answer to a task could be scored.",
        remedy=f"Did you mean `{near[0]}`?" if near else "Name one of them.",
    )


def score(scorer: Scorer, prompt: str, response: str, expected: str) -> float:
    """A scorer's score, from 0 to 1; of one that answers yes or no, 1 or 0.

    Raises:
        PactError: it is a number beyond these, or none.
    """
    found = scorer(prompt, response, expected)
    if isinstance(found, bool) or not isinstance(found, Real):
        return float(bool(found))
    if not 0 <= float(found) <= 1:
        raise PactError(
            expected="a scorer that returns true or false, or a number from 0 to 1",
            got=repr(found),
            consequence="A mean over such scores would be no share of the task.",
            remedy="Divide by the greatest score.",
        )
    return float(found)


def check(scorer: Scorer, prompts: Sequence[Prompt]) -> None:
    """Scores expected answers as if they were responses: what fails is noticed before a model is asked.

    Raises:
        PactError: one cannot be scored.
    """
    for p in prompts:
        if p.expected is None:
            continue
        try:
            score(scorer, p.text, p.expected, p.expected)
        except PactError:
            raise
        except Exception as error:  # a user's function may raise anything
            raise PactError(
                expected="a scorer that takes a prompt, a response and the expected answer",
                got=f"{type(error).__name__}: {error}, for the expected answer {p.expected[:80]!r} as the response",
                consequence="No answer to the task could be scored.",
                remedy="Correct the function.",
            ) from error


def _of_what_is_said(scorer: Scorer) -> Scorer:
    return lambda prompt, response, expected: scorer(prompt, said(response) or "", expected)


def _by_pattern(pattern: str) -> Scorer:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise PactError(
            expected=f"a regular expression behind `regex:`, not `{pattern}`",
            got=str(error),
            consequence="No answer to a task could be scored.",
            remedy=r"Correct it, for example `regex:Answer: (\w+)`.",
        ) from error

    def found(text: str) -> str | None:
        match = compiled.search(text)
        return None if match is None else ((match[1] if compiled.groups else match[0]) or "").strip()

    def scorer(_prompt: str, response: str, expected: str) -> bool:
        wanted = found(expected)
        return found(response) == (expected.strip() if wanted is None else wanted)

    return scorer


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _last(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
