"""Whose cross-entropy a run leaves out, told before its first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.method.objective import PactObjective

logger = logging.getLogger(__name__)

LOOKED_AT = 2_048
"""Sequences of a data set at most, evenly spaced: a second or two."""

MUCH = 0.05
"""Share of damped answers that is worth a warning: more than a few per cent is either harm, or a task in the wrong."""

_STRONGEST, _SHOWN = 3, 60

_AT_ONCE = 32
"""Sequences whose reference is asked for together: where a data set streams, that takes forward passes."""


@dataclass(frozen=True)
class Damping:
    """How much of a training set is damped (`loss.conflict`).

    Attributes:
        answers: how many were looked at.
        damped: those of them that are damped.
        strongest: of these, at most three: the row of the training set, the conflict, and how the prompt ends.
    """

    answers: int
    damped: int
    strongest: tuple[tuple[int, float, str], ...]

    @property
    def share(self) -> float:
        """Damped / all answers looked at."""
        return self.damped / self.answers if self.answers else 0.0

    def __str__(self) -> str:
        words = f"{self.damped:,} of {self.answers:,} answers looked at ({self.share:.1%})"
        if not self.damped:
            return words
        shown = "; ".join(f"row {row} ({conflict:.2f}): {text!r}" for row, conflict, text in self.strongest)
        return f"{words}; strongest: {shown}; all of them: `pact audit`"

    def warn(self) -> None:
        """Warns where it is much."""
        if self.share > MUCH:
            logger.warning(
                "PACT: damped are %s. Their cross-entropy is left out, and what they teach is not learned. If they ask "
                "for nothing harmful, set `pact.conflict: keep`.",
                self,
            )


def damping(
    objective: PactObjective, documents: Sequence[Document], decode: Callable[[list[int]], str]
) -> Damping | None:
    """What `objective` damps of `documents`; None if it damps nothing by its settings.

    Args:
        objective: ready, with the reference of the documents.
        documents: that hold an answer.
        decode: makes text of token ids, without special tokens.
    """
    if not objective.config.damps:
        return None
    step = max(1, -(-len(documents) // LOOKED_AT))
    answers, found = 0, list[tuple[int, float, str]]()
    for document, conflicts in zip(documents[::step], by_answer(objective, documents[::step]), strict=True):
        answers += len(conflicts)
        if max(conflicts, default=0.0) <= objective.config.conflict_threshold:
            continue  # of most: where its answers stand need not be asked again
        for answer, conflict in zip(document.answers(objective.chat), conflicts, strict=True):
            if conflict > objective.config.conflict_threshold:
                asked = decode(document.input_ids[max(0, answer.start - _SHOWN) : answer.start].tolist())
                found.append((document.row, conflict, asked[-_SHOWN:]))
    strongest = sorted(found, key=lambda one: -one[1])[:_STRONGEST]
    return Damping(answers, len(found), tuple(strongest))


def by_answer(objective: PactObjective, documents: Sequence[Document]) -> Iterator[list[float]]:
    """The conflict of each answer, document by document; none for one without an answer."""
    for start in range(0, len(documents), _AT_ONCE):
        part = documents[start : start + _AT_ONCE]
        tokens = AnswerTokens.of([*part], objective.chat)
        conflicts = objective.conflicts(tokens, objective.reference.look_up(tokens))
        found: dict[int, list[float]] = {}
        stops = np.cumsum(tokens.counts)
        for document, first, stop in zip(tokens.documents, stops - tokens.counts, stops, strict=True):
            _, places = np.unique(tokens.answer[first:stop], return_index=True)
            found[id(document)] = conflicts[first:stop][places].tolist()
        yield from (found.get(id(document), []) for document in part)
