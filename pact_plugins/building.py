"""Building the reference cache: forward passes of the model as it is before its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pact_plugins.answers import AnswerTokens, Document, Ints
from pact_plugins.chat_format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest
from pact_plugins.forward import batches_by_length, evaluating, pad, progress, to_device
from pact_plugins.reference import CacheWriter, Halves, ReferenceCache, log_probabilities
from pact_plugins.subset_head import Request, SubsetHead


def open_or_build(
    folder: Path,
    identity: dict[str, Any],
    documents: Sequence[Document],
    head: SubsetHead,
    chat: ChatFormat,
    **how: Any,
) -> tuple[ReferenceCache, bool]:
    """The cache of this identity below `folder`, and whether it had to be built (`how`: see `build`)."""
    target = folder / digest(identity)
    if built := not target.exists():
        build(target, identity, documents, head, chat, **how)
    return ReferenceCache(target, identity), built


def build(
    target: Path,
    identity: dict[str, Any],
    documents: Sequence[Document],
    head: SubsetHead,
    chat: ChatFormat,
    *,
    show_progress: bool = True,
) -> None:
    """Computes the reference of `documents` with `head`'s model as it is now, and stores it in the folder `target`.

    Call it in the autocast context of the trainer's own forward passes. Equal documents, and without the prompt equal
    answers, are computed once. The folder appears under its name only when it is whole.

    Args:
        identity: goes into the manifest; its `views` say what to compute, and its `reach` for how many tokens of each
            answer the view without the prompt is needed.

    Raises:
        PactError: the model gives logits that are not finite.
    """
    distinct = list({d.key: d for d in documents}.values())
    tokens = [AnswerTokens.of([d], chat) for d in distinct]
    reach = int(identity["reach"])
    counts = {
        "full": np.asarray([len(t) for t in tokens], np.int64),
        "answer_only": np.asarray([int((t.position < reach).sum()) for t in tokens], np.int64),
    }
    writer = CacheWriter(target, identity, [d.key for d in distinct], counts, len(head.ids))
    work = forward_sequences(tokens, identity["views"], reach, chat)
    batches = batches_by_length([len(s.ids) for s in work])
    shown = progress(batches, "PACT: computing the reference", len(batches), show_progress)
    with evaluating(head.model):
        for sequence, values in _one_behind(([work[i] for i in batch] for batch in shown), head):
            for view, document, skip in sequence.wanted:
                writer.write(view, document, values, skip)
    writer.finish()


@dataclass(frozen=True)
class ForwardSequence:
    """What one row of a forward pass computes.

    Attributes:
        ids: [L] ids to run.
        columns: [n] places whose next token is an answer token.
        wanted: (view, document, values to skip in it) of every place that the result is written to.
    """

    ids: Ints
    columns: Ints
    wanted: list[tuple[str, int, int]] = field(default_factory=list)


def forward_sequences(
    tokens: Sequence[AnswerTokens], views: Sequence[str], reach: int, chat: ChatFormat
) -> list[ForwardSequence]:
    """All that has to go through the model for the reference of documents.

    Args:
        tokens: the answer tokens of each document by itself.
        views: which views are wanted, `full` or `answer_only` or both.
        reach: for how many tokens of each answer the view without the prompt is needed.
        chat: what the chat template puts before answers.
    """
    sequences: list[ForwardSequence] = []
    if "full" in views:
        sequences += _full_sequences(tokens)
    if "answer_only" in views:
        sequences += _answer_only_sequences(tokens, reach, chat)
    return sequences


def _full_sequences(tokens: Sequence[AnswerTokens]) -> Iterator[ForwardSequence]:
    for i, t in enumerate(tokens):
        columns = t.column - t.documents[0].start
        # Nothing after the last answer token is needed.
        yield ForwardSequence(t.documents[0].input_ids[: int(columns[-1]) + 1], columns, [("full", i, 0)])


def _answer_only_sequences(tokens: Sequence[AnswerTokens], reach: int, chat: ChatFormat) -> list[ForwardSequence]:
    header = np.asarray(chat.require_header("build the reference without the prompt"), np.int64)
    distinct: dict[bytes, ForwardSequence] = {}
    for i, t in enumerate(tokens):
        within, skip = t.position < reach, 0
        for answer in range(int(t.answer[-1]) + 1):
            own = t.label[within & (t.answer == answer)]
            if not len(own):
                continue
            ids = np.concatenate([header, own[:-1]])
            columns = np.arange(len(own), dtype=np.int64) + len(header) - 1
            distinct.setdefault(ids.tobytes(), ForwardSequence(ids, columns)).wanted.append(("answer_only", i, skip))
            skip += len(own)
    return list(distinct.values())


def _one_behind(batches: Iterator[list[ForwardSequence]], head: SubsetHead) -> Iterator[tuple[ForwardSequence, Halves]]:
    """Every sequence with its [n, S] values; a batch's values are handed out while the next one is being computed."""
    pending: tuple[list[ForwardSequence], Callable[[], Halves]] | None = None
    for batch in batches:
        started = batch, _to_host(_log_probabilities(head, batch))
        if pending is not None:
            yield from _collected(*pending)
        pending = started
    if pending is not None:
        yield from _collected(*pending)


def _collected(batch: list[ForwardSequence], values: Callable[[], Halves]) -> Iterator[tuple[ForwardSequence, Halves]]:
    halves = values()
    if not np.isfinite(halves).all():
        raise PactError(
            expected="finite logits from the model before its first step",
            got="NaN or infinity",
            consequence="The reference would be meaningless.",
            remedy="Check the weights and the precision of the model; bfloat16 is safer than float16.",
        )
    ends = np.cumsum([len(s.columns) for s in batch])
    yield from zip(batch, np.split(halves, ends[:-1]), strict=True)


def _log_probabilities(head: SubsetHead, batch: list[ForwardSequence]) -> Tensor:
    """[N, S] float16, on the model's device; NaN where a value is not finite, so that infinity is seen too."""
    ids, mask = pad([s.ids for s in batch], next(head.model.parameters()).device)
    flat = np.concatenate([row * ids.shape[1] + s.columns for row, s in enumerate(batch)])
    positions = to_device(flat, ids.device)
    request = Request(positions, ids.reshape(-1)[positions], normalise=True)
    with head.watch(request) as captures:
        head.decode(ids, mask)
    values = log_probabilities(head.one(captures))
    least = float(np.finfo(np.float16).min)
    return torch.where(values.isfinite(), values.clamp(min=least), torch.nan).half()


def _to_host(values: Tensor) -> Callable[[], Halves]:
    """Starts the copy of `values`; calling what is returned waits for it."""
    if values.device.type != "cuda":
        return values.cpu().numpy
    copied = values.to("cpu", non_blocking=True)  # into pinned memory, so the next forward pass need not wait
    done = torch.cuda.Event()
    done.record()

    def wait() -> Halves:
        done.synchronize()
        return copied.numpy()

    return wait
