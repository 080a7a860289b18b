"""From a training batch to its answers: documents in packed rows, assistant turns, answer tokens, content keys.

All of it runs on the host, on copies of the batch's integer tensors.

Words: a *document* is one training sequence, alone in a padded row or one of several in a packed row. An *answer* is
the supervised part of one assistant turn. An *answer token* is a supervised token of an answer; the hidden state that
predicts it stands one column to its left.

Position 0 of an answer is the first of the turn's own words, thoughts or answer. What the template writes before them
may be supervised too (an opening `<think>`, an empty thinking block, a channel's name): the model hardly chooses it, so
what looks at the first tokens of an answer looks past it. Its tokens are answer tokens like others, at positions below
0. Where thoughts are trained on, position 0 is their first word; where they are masked, that of what follows them. What
packing or truncation has cut off the beginning of is at positions from `CONTINUED` on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import Ids, spans
from pact_plugins.chat.turns import Turn, assistant_turns
from pact_plugins.errors import PactError

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

CONTINUED = 1 << 20
"""Position of the first token of an answer that a sequence goes on with: beyond all that looks at the first ones."""

IGNORE_INDEX = -100
"""The label that means "not supervised" in transformers, TRL and Axolotl."""

_READ = ("input_ids", "labels", "position_ids", "attention_mask")
"""What `split_documents` reads of a batch."""

NO_TEXT = re.compile("pixel|image|video|audio|input_features|embeds")
"""In names of what a model is given beside text, or in place of it."""


@dataclass(frozen=True)
class Document:
    """One training sequence and where it stands.

    Attributes:
        input_ids: [L] token ids.
        supervised: [L] True where the token is a target of cross-entropy. The first is always False: nothing predicts
            it, and packing and padding collators disagree about its label.
        row, start: the coordinates of its first token in the batch, or in the data set that it was read from.
        seen: [L] False where the attention mask hides a token from the others, as collators do that take every token
            equal to the padding for padding; None if all are seen.
        positions: [L] the position of each token, counted from that of the first; None if they go on by one.
    """

    input_ids: Ints
    supervised: Bools
    row: int = 0
    start: int = 0
    seen: Bools | None = None
    positions: Ints | None = None

    @cached_property
    def key(self) -> bytes:
        """16 bytes that name the content, whatever the packing, padding, order, epoch or rank."""
        content = self.input_ids.tobytes() + np.packbits(self.supervised).tobytes()
        for name, values in (("seen", self.seen), ("positions", self.positions)):
            content += b"" if values is None else name.encode() + values.tobytes()
        return hashlib.blake2b(content, digest_size=16).digest()

    def up_to(self, stop: int) -> Document:
        """Its first `stop` tokens."""
        seen, positions = (None if values is None else values[:stop] for values in (self.seen, self.positions))
        ids, supervised = self.input_ids[:stop], self.supervised[:stop]
        return replace(self, input_ids=ids, supervised=supervised, seen=seen, positions=positions)

    def begins_inside(self, chat: ChatFormat) -> bool:
        """Whether it begins inside a turn, since packing or truncation has cut it: not as a conversation does."""
        return bool(chat.starts) and self.input_ids[0] not in (*chat.starts, chat.bos)

    def answers(self, chat: ChatFormat) -> list[Answer]:
        """Every answer, in order.

        Assistant turns are what follows an opening of the chat template, up to an end. The labels say what is trained
        on. A run of supervised tokens that begins inside an assistant turn, or inside its opening, belongs to that turn
        up to its end and what the template writes behind it. Of a run with whole openings (training on inputs), only
        what lies inside turns is answers, and of other runs (a user's turn, the ends of its turns) nothing. A document
        without any opening was not made by the template: there each run after unsupervised tokens is an answer. So it
        is under a template whose openings are plain text, which may be missed, unless it begins as a user's turn does.
        A run at the very beginning, before any opening, goes on with an answer of another sequence if the data trains
        on answers alone (`ChatFormat.answers_only`).

        Raises:
            PactError: answers have to be told from other turns that are trained on, and the template has no header, or
                no token that ends a turn.
        """
        ids = chat.unjoined(self.input_ids)
        asked = [start for _, start in spans(ids, chat.users)]
        turns = assistant_turns(ids, chat)
        runs = _runs(self.supervised)
        continued: list[Answer] = []
        if chat.answers_only and runs and runs[0][0] == 1 and self.begins_inside(chat):
            (start, stop), *runs = runs
            continued = [Answer(start, stop, start - CONTINUED, chat.header)]
        if not turns and chat.exact and asked:
            return continued
        if not turns:
            for start, _ in runs:
                if start <= 1:
                    chat.require_header("tell the answers from the prompts, since both are trained on")
            found = [Answer(start, stop, start, chat.header) for start, stop in runs if start > 1]
            return [*continued, *(answer for answer in found if not _asks(answer.start, asked))]
        owned: dict[int, tuple[int, int]] = {}
        others: list[Answer] = []
        for start, stop in runs:
            begin = 0 if start == 1 else start  # a document's first token is never supervised
            inside = [t for t in turns if begin <= t.opening and t.start < stop]
            around = [t for t in turns if t.opening < begin < t.stop and t.start < stop]
            if inside and not chat.ends and len(inside) + len(around) > 1:
                raise _no_end()
            if not (inside or around or chat.exact) and start > 1 and not _asks(start, asked):
                others.append(Answer(start, stop, start, chat.header))
            for turn in (*around, *inside):
                first = turn.start if turn in inside else start
                last = min(turn.stop if inside else turn.trailed, stop)
                owned[turn.opening] = owned.get(turn.opening, (first, 0))[0], last
        found = [self._answer(turn, *owned[turn.opening], chat, ids) for turn in turns if turn.opening in owned]
        return sorted([*continued, *found, *others], key=lambda answer: answer.start)

    def _answer(self, turn: Turn, start: int, stop: int, chat: ChatFormat, ids: Ints) -> Answer:
        own = tuple(ids[turn.start : turn.stop].tolist())
        words = turn.start + max((len(lead) for lead in chat.leads if own[: len(lead)] == lead), default=0)
        # A row may go on after the opening otherwise than the header does.
        header = tuple(self.input_ids[turn.opening : start].tolist()) if start <= words else chat.header
        return Answer(start, stop, max(start, words), header or chat.header)


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


def _asks(start: int, asked: list[int]) -> bool:
    """Whether a user's words, which begin at the places `asked`, begin at `start`, or behind a blank there."""
    return any(0 <= start - place <= 1 for place in asked)


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
        prompt_end: [A] column of the token before each answer, which is its prompt's last one.
    """

    documents: list[Document]
    counts: Ints
    row: Ints
    column: Ints
    label: Ints
    position: Ints
    answer: Ints
    prompt_end: Ints

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
        prompt_end: list[int] = []
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
                prompt_end.append(document.start + answer.start - 1)
                count += len(column)
            if count:
                kept.append(document)
                counts.append(count)
        empty = (np.empty(0, np.int64),) * 5
        row, place, label, position, number = (np.concatenate(c) for c in zip(*(parts or [empty]), strict=True))
        ends = np.asarray(prompt_end, np.int64)
        return cls(kept, np.asarray(counts, np.int64), row, place, label, position, number, ends)


def split_documents(inputs: Mapping[str, Any]) -> list[Document]:
    """The documents of a batch that have at least one supervised token, as the model sees them.

    Without an `attention_mask` a row is cut where `position_ids` do not go on by one. With one it is cut where they
    begin again at 0, and where the mask goes over from one number to another. A 0 between two tokens of a document
    hides a token from the others, but ends nothing; at an end it is padding. That serves padded batches, TRL's packed
    and padding-free ones, Axolotl's sample packing, and masks of everything but the padding token.

    Args:
        inputs: `input_ids` and `labels` [B, L], and where present `position_ids` and `attention_mask` [B, L].

    Raises:
        PactError: the batch has no labels or others than its tokens, does not hold one integer per token, or holds
            images or sounds.
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
    input_ids, labels = inputs["input_ids"], inputs["labels"]
    for name, values in inputs.items():
        # One row of positions may stand for all rows.
        if values.shape != input_ids.shape and (name, values.shape) != ("position_ids", (1, input_ids.shape[-1])):
            raise _no_batch(f"`{name}` of one value per token, {input_ids.shape}", f"the shape {values.shape}")
    if not input_ids.size:
        return []
    positions = inputs.get("position_ids")
    if positions is not None:
        positions = np.broadcast_to(positions, input_ids.shape)
    mask = inputs.get("attention_mask")
    documents: list[Document] = []
    for row in range(len(input_ids)):
        own = None if positions is None else positions[row]
        seen = None if mask is None else mask[row]
        documents += documents_of_row(input_ids[row], labels[row], seen, own, row)
    return documents


def documents_of_row(
    input_ids: Ints, labels: Ints, mask: Ints | None, positions: Ints | None, row: int = 0
) -> list[Document]:
    """The documents of one row (see `split_documents`); all arrays are [L]."""
    marked = labels != IGNORE_INDEX
    if (other := np.flatnonzero(marked & (labels != input_ids))).size:
        place = int(other[0])
        raise PactError(
            expected="labels that are the tokens at their own places, or -100",
            got=f"the label {labels[place]} at token {place} of row {row}, which is {input_ids[place]}",
            consequence="PACT would constrain other tokens than those that are trained on.",
            remedy="Leave labels where their tokens are: the model moves them by one itself.",
        )
    cuts = _jumps(positions) if mask is None else _restarts(mask, positions)
    found: list[Document] = []
    for start, stop in pairwise([0, *cuts, len(input_ids)]):
        if mask is not None:
            # A supervised token at the end may be hidden itself: nothing after it has to see it.
            inside = np.flatnonzero((mask[start:stop] != 0) | marked[start:stop])
            start, stop = (start + int(inside[0]), start + int(inside[-1]) + 1) if len(inside) else (start, start)
        supervised = marked[start:stop].copy()
        supervised[:1] = False
        if supervised.any():
            seen = None if mask is None or mask[start:stop].all() else mask[start:stop] != 0
            own = None if positions is None or mask is None else positions[start:stop]
            if own is not None:
                own = own - own[0] if len(_jumps(own)) else None
            found.append(Document(input_ids[start:stop].copy(), supervised, row, start, seen, own))
    return found


def _jumps(positions: Ints | None) -> list[int]:
    """Where positions do not go on by one."""
    return [] if positions is None else (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()


def _restarts(mask: Ints, positions: Ints | None) -> list[int]:
    """Where positions begin again at 0, and where the mask goes over to another number; hidden tokens left out."""
    places = np.flatnonzero(mask)
    ended = np.diff(mask[places]) != 0
    if positions is not None:
        ended |= positions[places][1:] == 0
    return places[1:][ended].tolist()


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
        PactError: the batch holds images or sounds, which no token id tells apart, or fractions in place of integers.
    """
    shape = torch.Size(getattr(inputs.get("input_ids"), "shape", ()))
    other = [k for k, v in inputs.items() if k not in _READ and isinstance(v, torch.Tensor) and _is_seen(k, v, shape)]
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
    for name, values in present.items():
        # Rounded, a mask of additive terms or a soft one would hide other tokens than it does in the model.
        if values.is_floating_point() and not torch.isin(values, torch.tensor([0.0, 1.0]).to(values)).all():
            raise _no_batch(f"integers under `{name}`", f"numbers of {values.dtype}, others than 0 and 1 among them")
    together = torch.cat([values.detach().reshape(-1).long() for values in present.values()]).cpu().numpy()
    ends = np.cumsum([values.numel() for values in present.values()])
    parts = np.split(together, ends[:-1])
    return {k: np.atleast_2d(part.reshape(present[k].shape)) for k, part in zip(present, parts, strict=True)}


def _is_seen(name: str, values: torch.Tensor, shape: torch.Size) -> bool:
    """Whether a model sees these beside tokens of the shape [B, L]: not weights and scores of rows or of tokens."""
    if not values.is_floating_point() or values.dim() == 0:
        return False
    of_rows = values.shape[:1] == shape[:1] and (values.dim() == 1 or values.shape[1] == 1)
    of_tokens = values.dim() > 1 and values.shape[:2] == shape
    return bool(NO_TEXT.search(name)) or values.dim() > 3 or not (of_rows or of_tokens)


def _array(values: Any) -> Ints:
    """An integer tensor, array or nested list with at least two dimensions."""
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iub":
        raise TypeError(f"values of the type {array.dtype.name}")
    return np.atleast_2d(array.astype(np.int64))


def _runs(mask: Bools) -> list[tuple[int, int]]:
    """[start, stop) of each maximal run of True."""
    framed = np.zeros(len(mask) + 2, bool)
    framed[1:-1] = mask
    edges = (framed[1:] != framed[:-1]).nonzero()[0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
