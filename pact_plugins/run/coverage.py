"""How many of the supervised assistant tokens of a data set PACT constrains, and why not all of them.

Labels say what is trained on, the chat template says where turns are. A supervised token is of another turn if it lies
in the words of a user, or, where the labels train on other turns too, anywhere outside the assistant turns that were
located. Every other one counts as an assistant's: coverage is the share of those that are constrained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from pact_plugins.chat.answers import Document, Ints
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import spans
from pact_plugins.errors import PactError

logger = logging.getLogger(__name__)

Reason = Literal["begins inside a turn", "no assistant turn located"]

SHOWN = 24
"""Tokens of a row that an error shows."""


@dataclass(frozen=True)
class Missed:
    """Supervised assistant tokens that are not constrained, for one reason.

    Attributes:
        reason: `begins inside a turn`: a row that packing or truncation has cut there, so that nothing tells whose turn
            it was. `no assistant turn located`: the template's tokens before an answer were not found.
        tokens, sequences: how many of an epoch.
        row: the first such row of the training set.
        text: how it begins.
    """

    reason: Reason
    tokens: int
    sequences: int
    row: int
    text: str

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens in {self.sequences:,} rows: {self.reason} (first in row {self.row}: {self.text!r})"
        )


@dataclass(frozen=True)
class Coverage:
    """Supervised assistant tokens of an epoch.

    Attributes:
        constrained: those under the safety term.
        missed: the others, by reason.
        other: supervised tokens of other turns, which the safety term leaves alone.
    """

    constrained: int
    missed: tuple[Missed, ...]
    other: int

    @property
    def share(self) -> float:
        """Constrained / supervised assistant tokens; 1 if there are none of these."""
        supervised = self.constrained + sum(m.tokens for m in self.missed)
        return self.constrained / supervised if supervised else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {**asdict(self), "share": self.share}

    def rows(self) -> list[tuple[str, str]]:
        """For a table."""
        share = "coverage", f"{self.share:.1%} of the supervised assistant tokens are constrained"
        return [share, *(("not constrained", str(missed)) for missed in self.missed)]

    def require(self, least: float) -> None:
        """Warns of tokens that are missed.

        Raises:
            PactError: the share is below `least`.
        """
        if not self.missed:
            return
        found = f"{self.share:.1%} of the supervised assistant tokens: {'; '.join(map(str, self.missed))}"
        if self.share < least:
            raise PactError(
                expected=f"at least {least:.0%} of the supervised assistant tokens to be constrained",
                got=found,
                consequence="The run would look protected, and train the rest of its answers without PACT.",
                remedy="Where rows begin inside a turn, pack whole conversations (`packing_strategy: bfd`, a larger "
                "`max_length`/`sequence_len`), or train on the assistant's turns alone (TRL: `assistant_only_loss: "
                "true`, Axolotl: `train_on_inputs: false`), which tells whose the pieces are. Where turns are not "
                "located, use the chat template that rendered the data. `pact.min_coverage` lowers what is asked for.",
            )
        logger.warning("PACT: constrained are %s.", found)


class Located(NamedTuple):
    """Where the answers of a training set are.

    Attributes:
        chat: what the chat template puts around turns, and what the labels of the data say (`answers_only`).
        coverage: what of the supervised tokens is constrained.
        answer_tokens: of each document.
        several: whether a document holds several answers.
    """

    chat: ChatFormat
    coverage: Coverage
    answer_tokens: list[int]
    several: bool


def located(documents: Sequence[Document], chat: ChatFormat, decode: Callable[[list[int]], str]) -> Located:
    """Locates the answers of all documents, once.

    Args:
        documents: all training sequences.
        chat: what the chat template puts around turns.
        decode: makes text of token ids.

    Raises:
        PactError: the words of a user would be constrained.
    """
    parts = [_Part.of(d, chat) for d in documents]
    if any(p.asked for p in parts) and not any(p.users for p in parts):
        chat = replace(chat, answers_only=True)
        # What begins inside a turn belongs to an answer now.
        parts = [_Part.of(d, chat) if p.rest else p for d, p in zip(documents, parts, strict=True)]
    for document, part in zip(documents, parts, strict=True):
        if part.outside:
            raise PactError(
                expected="answers that hold none of the words of a user",
                got=f"{part.outside} such tokens in row {document.row}: {_beginning(document, decode)!r}",
                consequence="The safety term would constrain what a user writes.",
                remedy="Use the chat template that rendered the data, with tokens of its own for each role.",
            )
    missed: list[Missed] = []
    for reason in get_args(Reason):
        own = [(d, p.missed) for d, p in zip(documents, parts, strict=True) if p.missed and p.reason == reason]
        if own:
            first = own[0][0]
            missed.append(Missed(reason, sum(n for _, n in own), len(own), first.row, _beginning(first, decode)))
    counts = [p.constrained for p in parts]
    coverage = Coverage(sum(counts), tuple(missed), sum(p.rest - p.missed for p in parts))
    return Located(chat, coverage, counts, any(p.answers > 1 for p in parts))


@dataclass(frozen=True)
class _Part:
    """Of one document: numbers of tokens.

    Attributes:
        answers: how many there are.
        constrained: supervised, and in an answer.
        outside: those of them in the words of a user.
        rest: supervised, and in no answer.
        missed: those of them that may be an assistant's, for `reason`.
        users: supervised words of users.
        asked: whether there is a user's turn.
    """

    answers: int
    constrained: int
    outside: int
    rest: int
    missed: int
    reason: Reason
    users: int
    asked: bool

    @classmethod
    def of(cls, document: Document, chat: ChatFormat) -> _Part:
        ids, supervised = document.input_ids, document.supervised
        constrained, user, header = (np.zeros(len(ids), bool) for _ in range(3))
        answers = document.answers(chat)
        for answer in answers:
            constrained[answer.start : answer.stop] = supervised[answer.start : answer.stop]
        found = chat.unjoined(ids)
        headers = spans(found, chat.openings)
        for place, end in headers:
            header[place:end] = True
        # A user's words go from the opening of the turn up to the next token that ends a turn or opens one.
        asked = spans(found, chat.users)
        opened = sorted({place for place, _ in (*asked, *headers)})
        stops = np.sort(np.concatenate([np.flatnonzero(np.isin(ids, chat.ends)), opened, [len(ids)]]))
        for _, start in asked:
            user[start : int(stops[np.searchsorted(stops, start)])] = True
        rest = supervised & ~constrained
        missed, begun = rest & ~user & ~header, opened[0] if opened else len(ids)
        cut = document.begins_inside(chat)
        if opened and not chat.answers_only:
            # Other turns may be trained on: what stands behind the first opening, and is no answer, is one of them.
            missed[begun if cut else 0 :] = False
            for start in _not_located(found, chat, [place for place, _ in headers]):
                stop = int(stops[np.searchsorted(stops, start)])
                missed[start:stop] = rest[start:stop]
        return cls(
            answers=len(answers),
            constrained=int(constrained.sum()),
            # Behind an opening in plain text that was missed, an answer looks like the user's.
            outside=int((constrained & user).sum()) if chat.exact else 0,
            rest=int(rest.sum()),
            missed=int(missed.sum()),
            reason="begins inside a turn" if cut and missed[:begun].any() else "no assistant turn located",
            users=int((supervised & user).sum()),
            asked=bool(asked),
        )


def _not_located(ids: Ints, chat: ChatFormat, opened: list[int]) -> list[int]:
    """Where turns of an assistant begin that are opened nearly as they should be: the last token is another."""
    cores = {opening[:-1] for opening in chat.openings if not chat.markers.isdisjoint(opening[:-1])}
    cores -= {user[: len(core)] for core in cores for user in chat.users}
    return [start for place, start in spans(ids, cores) if place not in opened]


def _beginning(document: Document, decode: Callable[[list[int]], str]) -> str:
    return decode(document.input_ids[:SHOWN].tolist())
