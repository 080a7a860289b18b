"""From a training batch to its answers: documents in packed rows, assistant turns, answer tokens, content keys.

All of it runs on the host, on copies of the batch's integer tensors.

Words: a *document* is one training sequence, alone in a padded row or one of several in a packed row. An *answer* is
the supervised part of one assistant turn. An *answer token* is a supervised token of an answer; the hidden state that
predicts it stands one column to its left.

Position 0 of an answer is the first of the turn's own words, thoughts or answer. What the template writes before them
may be supervised too (an opening `<think>`, an empty thinking block, a channel's name): the model hardly chooses it, so
what looks at the first tokens of an answer looks past it. Its tokens are answer tokens like others, at positions below
0. Where thoughts are trained on, position 0 is their first word; where they are masked, that of what follows them.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pact_plugins.chat_format import ChatFormat
from pact_plugins.chat_template import Ids, find
from pact_plugins.errors import PactError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

IGNORE_INDEX = -100
"""The label that means "not supervised" in transformers, TRL and Axolotl."""

_READ = ("input_ids", "labels", "position_ids", "attention_mask")
"""What `split_documents` reads of a batch."""


@dataclass(frozen=True)
class Document:
    """One training sequence and where it stands.

    Attributes:
        input_ids: [L] token ids.
        supervised: [L] True where the token is a target of cross-entropy. The first is always False: nothing predicts
            it, and packing and padding collators disagree about its label.
        row, start: the coordinates of its first token in the batch, or in the data set that it was read from.
    """

    input_ids: Ints
    supervised: Bools
    row: int = 0
    start: int = 0

    @cached_property
    def key(self) -> bytes:
        """16 bytes that name the content, whatever the packing, padding, order, epoch or rank."""
        content = self.input_ids.tobytes() + np.packbits(self.supervised).tobytes()
        return hashlib.blake2b(content, digest_size=16).digest()

    def answers(self, chat: ChatFormat) -> list[Answer]:
        """Every answer, in order.

        Assistant turns are what follows an opening of the chat template, up to an end. The labels say what is trained
        on. A run of supervised tokens that begins inside an assistant turn, or inside its opening, and holds no other
        opening, belongs to that turn as a whole. Of a run with whole openings (training on inputs), only what lies
        inside turns is answers, and of other runs (a user's turn, the ends of its turns) nothing. A document without
        any opening was not made by the template: there each run after unsupervised tokens is an answer, and so it is
        under a template whose openings are plain text, which may be missed.

        Raises:
            PactError: answers have to be told from other turns that are trained on, and the template has no header, or
                no token that ends a turn.
        """
        turns = self._turns(chat)
        runs = _runs(self.supervised)
        if not turns and chat.exact and find(self.input_ids, chat.user):
            return []
        if not turns:
            for start, _ in runs:
                if start <= 1:
                    chat.require_header("tell the answers from the prompts, since both are trained on")
            return [Answer(start, stop, start, chat.header) for start, stop in runs if start > 1]
        owned: dict[int, tuple[int, int]] = {}
        others: list[Answer] = []
        for start, stop in runs:
            begin = 0 if start == 1 else start  # a document's first token is never supervised
            inside = [t for t in turns if begin <= t.opening and t.start < stop]
            around = [t for t in turns if t.opening < begin < t.stop and t.start < stop]
            if inside and not chat.ends and len(inside) + len(around) > 1:
                raise _no_end()
            if not (inside or around or chat.exact) and start > 1:
                others.append(Answer(start, stop, start, chat.header))
            for turn in (*around, *inside):
                first = turn.start if turn in inside else start
                last = min(turn.stop, stop) if inside else stop
                owned[turn.opening] = owned.get(turn.opening, (first, 0))[0], last
        found = [self._answer(turn, *owned[turn.opening], chat) for turn in turns if turn.opening in owned]
        return sorted([*found, *others], key=lambda answer: answer.start)

    def _turns(self, chat: ChatFormat) -> list[_Turn]:
        """The assistant turns, in order. An opening's text inside a turn opens none."""
        openings = chat.openings or (chat.header,)
        opened = sorted((place, place + len(ids)) for ids in openings for place in find(self.input_ids, ids))
        if not opened:
            return []
        stops = [int(i) + 1 for i in np.flatnonzero(np.isin(self.input_ids, chat.ends))]
        if not chat.ends:
            stops = sorted([*find(self.input_ids, chat.user), *(place for place, _ in opened)])
        turns: list[_Turn] = []
        for place, start in opened:
            if not turns or place >= turns[-1].stop:
                later = bisect_right(stops, start)
                turns.append(_Turn(place, start, stops[later] if later < len(stops) else len(self.input_ids)))
        return turns

    def _answer(self, turn: _Turn, start: int, stop: int, chat: ChatFormat) -> Answer:
        own = tuple(self.input_ids[turn.start : turn.stop].tolist())
        words = turn.start + max((len(lead) for lead in chat.leads if own[: len(lead)] == lead), default=0)
        # A row may go on after the opening otherwise than the header does.
        header = tuple(self.input_ids[turn.opening : start].tolist()) if start <= words else chat.header
        return Answer(start, stop, max(start, words), header)


@dataclass(frozen=True)
class Answer:
    """The supervised part of one assistant turn.

    Attributes:
        start, stop: from its first supervised token to after its last. Some between them may be unsupervised.
        words: where position 0 is: the first supervised token that is no part of the turn's lead.
        header: ids that stand before it where its prompt is removed: from the turn's opening to `start`, if only the
            lead stands between them; else the header of the generation prompt.
    """

    start: int
    stop: int
    words: int
    header: Ids


@dataclass(frozen=True)
class _Turn:
    """Where an assistant turn's opening begins, where the turn itself does, and where it stops."""

    opening: int
    start: int
    stop: int


def _no_end() -> PactError:
    return PactError(
        expected="a chat template that ends each answer with a special token, since prompts are trained on too",
        got="several answers in a sequence, and a template without such an end",
        consequence="PACT could not tell where an answer stops and the next prompt begins.",
        remedy="Train on the answers alone (TRL: `assistant_only_loss: true`; Axolotl: `train_on_inputs: false`), or "
        "let the template end each answer with the tokenizer's end-of-sequence token.",
    )


@dataclass(frozen=True)
class AnswerTokens:
    """The N answer tokens of a batch, document by document, answer by answer.

    Attributes:
        documents: the documents that hold at least one answer token, in batch order.
        counts: [D] number of answer tokens of each.
        row, column: [N] batch coordinates of the hidden state that predicts each token.
        label: [N] id of each token.
        position: [N] index of each token in its own answer, 0 at the first of its words (see the module).
        answer: [N] number of the answer it belongs to, counted through the batch.
    """

    documents: list[Document]
    counts: Ints
    row: Ints
    column: Ints
    label: Ints
    position: Ints
    answer: Ints

    def __len__(self) -> int:
        return len(self.row)

    def flat(self, width: int) -> Ints:
        """[N] places row * width + column of those hidden states in a flattened batch of `width` columns."""
        return self.row * width + self.column

    @classmethod
    def of(cls, documents: list[Document], chat: ChatFormat) -> AnswerTokens:
        """Locates the answer tokens of `documents`."""
        kept: list[Document] = []
        counts: list[int] = []
        parts: list[tuple[Ints, ...]] = []
        for document in documents:
            count = 0
            for answer in document.answers(chat):
                column = answer.start + np.flatnonzero(document.supervised[answer.start : answer.stop])
                parts.append(
                    (
                        np.full(len(column), document.row, np.int64),
                        column + document.start - 1,
                        document.input_ids[column],
                        column - answer.words,
                        np.full(len(column), len(parts), np.int64),
                    )
                )
                count += len(column)
            if count:
                kept.append(document)
                counts.append(count)
        empty = (np.empty(0, np.int64),) * 5
        columns = [np.concatenate(c) for c in zip(*(parts or [empty]), strict=True)]
        return cls(kept, np.asarray(counts, np.int64), *columns)


def split_documents(inputs: Mapping[str, Any]) -> list[Document]:
    """The documents of a batch that have at least one supervised token.

    A row is cut where `position_ids` do not continue by one and where `attention_mask` changes: that serves padded
    batches, TRL's packed and padding-free ones, and Axolotl's sample packing.

    Args:
        inputs: `input_ids` and `labels` [B, L], and where present `position_ids` and `attention_mask` [B, L].

    Raises:
        PactError: the batch has no labels, does not hold one integer per token, or holds images or sounds.
    """
    if "labels" not in inputs or "input_ids" not in inputs:
        raise PactError(
            expected="a training batch with `input_ids` and `labels`",
            got=f"the keys {sorted(inputs)}",
            consequence="PACT could not tell which tokens are trained on.",
            remedy="Use the trainer's own data collator for language modelling.",
        )
    try:
        inputs = on_host(inputs)
    except (TypeError, ValueError) as error:
        raise _no_batch("integers in rows of equal length", f"{type(error).__name__}: {error}") from error
    input_ids = inputs["input_ids"]
    for name, values in inputs.items():
        # One row of positions may stand for all rows.
        if values.shape != input_ids.shape and (name, values.shape) != ("position_ids", (1, input_ids.shape[-1])):
            raise _no_batch(f"`{name}` of one value per token, {input_ids.shape}", f"the shape {values.shape}")
    if not input_ids.size:
        return []
    breaks = np.zeros(input_ids.shape, bool)
    breaks[:, 0] = True
    if "position_ids" in inputs:
        position_ids = np.broadcast_to(inputs["position_ids"], input_ids.shape)
        breaks[:, 1:] |= position_ids[:, 1:] != position_ids[:, :-1] + 1
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        breaks[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    return list(_cut(input_ids, inputs["labels"], breaks))


def _no_batch(expected: str, got: str) -> PactError:
    return PactError(
        expected=f"a training batch with {expected}",
        got=got,
        consequence="PACT could not tell the documents apart, or which of their tokens are trained on.",
        remedy="Use the trainer's own data collator for language modelling, which pads rows to one length.",
    )


def on_host(inputs: Mapping[str, Any]) -> dict[str, Ints]:
    """The part of a batch that `split_documents` reads, as numpy arrays.

    One copy for all tensors: each copy from a GPU waits until it has nothing left to do.

    Raises:
        PactError: the batch holds images or sounds, which no token id tells apart.
    """
    other = [k for k, v in inputs.items() if k not in _READ and isinstance(v, torch.Tensor) and v.is_floating_point()]
    if other:
        raise PactError(
            expected="a training batch of text",
            got=f"`{'`, `'.join(other)}` beside its tokens",
            consequence="The reference is computed from tokens alone, and would not know the image or the sound.",
            remedy="Train on text, or switch PACT off (`pact: false`).",
        )
    present = {k: inputs[k] for k in _READ if inputs.get(k) is not None}
    if not all(isinstance(values, torch.Tensor) for values in present.values()):
        return {k: _array(values) for k, values in present.items()}
    together = torch.cat([values.detach().reshape(-1).long() for values in present.values()]).cpu().numpy()
    ends = np.cumsum([values.numel() for values in present.values()])
    parts = np.split(together, ends[:-1])
    return {k: np.atleast_2d(part.reshape(present[k].shape)) for k, part in zip(present, parts, strict=True)}


def _array(values: Any) -> Ints:
    """An integer tensor, array or nested list with at least two dimensions."""
    return np.atleast_2d(np.asarray(values, dtype=np.int64))


def _cut(input_ids: Ints, labels: Ints, breaks: Bools) -> Iterator[Document]:
    for row in range(len(input_ids)):
        starts = np.flatnonzero(breaks[row])
        for start, stop in zip(starts, [*starts[1:], input_ids.shape[1]], strict=True):
            supervised = labels[row, start:stop] != IGNORE_INDEX
            supervised[0] = False
            if supervised.any():
                yield Document(input_ids[row, start:stop].copy(), supervised, row, int(start))


def _runs(mask: Bools) -> list[tuple[int, int]]:
    """[start, stop) of each maximal run of True."""
    framed = np.zeros(len(mask) + 2, bool)
    framed[1:-1] = mask
    edges = (framed[1:] != framed[:-1]).nonzero()[0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
