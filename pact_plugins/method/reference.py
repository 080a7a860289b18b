"""The reference cache, found or built: forward passes of the model as it is before its first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pact_plugins.chat.answers import AnswerTokens, Bools, Document, Ints
from pact_plugins.chat.fingerprints import digest
from pact_plugins.chat.format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.method.harm_probe import HarmProbe
from pact_plugins.model.forward import batches_by_length, evaluating, padded, to_device
from pact_plugins.model.layer_states import LayerStates
from pact_plugins.model.progress import progress
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.subset_head import Request, SubsetHead
from pact_plugins.storage import files
from pact_plugins.storage.cache import Halves, ReferenceCache, log_probabilities
from pact_plugins.storage.writer import CacheWriter, Place

_WHAT = "computing this reference"

_VISIBLE = 120.0
"""Seconds until a new folder shows on every node: network file systems remember for a while that it was not there."""


def open_or_build(
    folder: Path,
    identity: dict[str, Any],
    documents: Sequence[Document],
    head: SubsetHead,
    chat: ChatFormat,
    *,
    probe: Callable[[], HarmProbe] | None = None,
    ranks: Ranks = ALONE,
    show_progress: bool = True,
) -> tuple[ReferenceCache, bool]:
    """The cache of this identity below `folder`, and whether this run built it (see `build`).

    `probe` learns the probe, if the cache has to be built.
    """
    target = folder / digest(identity)
    there = all(ranks.exchange(target.exists(), _WHAT))
    built = not there and build(
        target,
        identity,
        documents,
        head,
        chat,
        probe=probe() if probe else None,
        ranks=ranks,
        show_progress=show_progress,
    )
    _wait_until_visible(target)
    return ReferenceCache(target, identity), built


def build(
    target: Path,
    identity: dict[str, Any],
    documents: Sequence[Document],
    head: SubsetHead,
    chat: ChatFormat,
    *,
    probe: HarmProbe | None = None,
    ranks: Ranks = ALONE,
    show_progress: bool = True,
) -> bool:
    """Computes the reference of `documents` with `head`'s model as it is now, and stores it in the folder `target`.

    Call it in the autocast context of the trainer's own forward passes. Equal documents, and without the prompt equal
    answers, are computed once. The folder appears under its name only when it is whole; a build that was interrupted is
    continued, and one that another run is at is waited for.

    Each rank computes its part, in as many forward passes as every other rank. Of those that share a disk the first one
    writes; none returns before the folder is whole.

    Args:
        identity: goes into the manifest; its `views` say what to compute, and its `reach` for how many tokens of each
            answer the view without the prompt is needed.
        probe: what scores the harm of prompts, if that is one of the `views`.
        ranks: of this run, with the same weights and arguments but for `target`.
        show_progress: whether there is a progress bar.

    Returns:
        Whether it was built here: False if another run has done so meanwhile.

    Raises:
        PactError: the model gives logits that are not finite, or the cache cannot be written.
    """
    # In the order of their keys: the same batches, and so the same rounding, whatever the order of the data.
    tokens = [AnswerTokens.of([d], chat) for d in sorted({d.key: d for d in documents}.values(), key=lambda d: d.key)]
    tokens = [t for t in tokens if len(t)]
    reach = int(identity["reach"])
    counts = {
        "full": np.asarray([len(t) for t in tokens], np.int64),
        "answer_only": np.asarray([int((t.position < reach).sum()) for t in tokens], np.int64),
        "harm": np.asarray([len(t.prompt_end) for t in tokens], np.int64),
    }
    work = forward_sequences(tokens, identity["views"], reach, chat)
    batches = [[work[i] for i in batch] for batch in batches_by_length([len(s.input_ids) for s in work])]
    places = [[place for sequence in batch for place in sequence.places] for batch in batches]
    writes = files.first_on_disk(target.parent, ranks) and not target.exists()
    with files.locked(target, _WHAT, ranks, holds=writes):
        writes = writes and not target.exists()
        if not any(ranks.exchange(writes, _WHAT)):
            return False
        keys = [t.documents[0].key for t in tokens]
        with CacheWriter(target, identity, keys, counts, len(head.ids), places) if writes else nullcontext() as writer:
            missing = ranks.exchange(writer.to_do() if writer else [], _WHAT)
            to_do = sorted({number for of_rank in missing for number in of_rank})
            done = len(batches) - len(to_do)
            what = f"PACT: computing the reference{', continued' if done else ''}"
            with evaluating(head.model):
                own = _one_behind((batches[number] for number in ranks.part(to_do)), head, probe)
                computed = ranks.merged(to_do, own, _WHAT)
                for number, values in progress(computed, what, len(batches), show_progress, done=done):
                    if writer:
                        writer.store(number, [part for parts in values for part in parts])
            if writer:
                writer.finish()
        ranks.exchange(None, _WHAT)
    return True


def _wait_until_visible(folder: Path) -> None:
    deadline = time.monotonic() + _VISIBLE
    while not folder.exists() and time.monotonic() < deadline:
        time.sleep(0.5)


@dataclass(frozen=True)
class ForwardSequence:
    """What one row of a forward pass computes.

    Attributes:
        input_ids: [L] what to run.
        columns: [n] places whose next token is an answer token.
        seen, positions: [L] as in the document (`answers.Document`), or None.
        wanted: every place that the result is written to.
        prompt_ends: [A] places of the last tokens of the answers' prompts, whose harm is scored.
        harm: where that is written to; None if it is not wanted.
    """

    input_ids: Ints
    columns: Ints
    seen: Bools | None = None
    positions: Ints | None = None
    wanted: list[Place] = field(default_factory=list)
    prompt_ends: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    harm: Place | None = None

    @property
    def places(self) -> list[Place]:
        """Every place that something is written to."""
        return [*self.wanted, *([self.harm] if self.harm else [])]

    def parts(self, values: Halves, harm: Halves) -> list[Halves]:
        """What is written there, of the result [n, S] and the harm [A, 1]."""
        return [values] * len(self.wanted) + ([harm] if self.harm else [])


def forward_sequences(
    tokens: Sequence[AnswerTokens], views: Sequence[str], reach: int, chat: ChatFormat
) -> list[ForwardSequence]:
    """All that has to go through the model for the reference of documents.

    Args:
        tokens: the answer tokens of each document by itself.
        views: which views are wanted, of `full`, `answer_only` and `harm`, the last with the first alone.
        reach: for how many tokens of each answer the view without the prompt is needed.
        chat: what the chat template puts before answers.
    """
    sequences: list[ForwardSequence] = []
    if "full" in views:
        sequences += _full_sequences(tokens, "harm" in views)
    if "answer_only" in views:
        sequences += _answer_only_sequences(tokens, reach, chat)
    return sequences


def _full_sequences(tokens: Sequence[AnswerTokens], harm: bool) -> Iterator[ForwardSequence]:
    for i, t in enumerate(tokens):
        document = t.documents[0]
        columns = t.column - document.start
        place = Place("full", i, 0, len(columns))
        # Nothing after the last answer token is needed.
        length = int(columns[-1]) + 1
        seen = None if document.seen is None else document.seen[:length]
        positions = None if document.positions is None else document.positions[:length]
        ends = t.prompt_end - document.start if harm else t.prompt_end[:0]
        scored = Place("harm", i, 0, len(ends)) if harm else None
        yield ForwardSequence(document.input_ids[:length], columns, seen, positions, [place], ends, scored)


def _answer_only_sequences(tokens: Sequence[AnswerTokens], reach: int, chat: ChatFormat) -> list[ForwardSequence]:
    chat.require_header("build the reference without the prompt")
    distinct: dict[bytes, ForwardSequence] = {}
    for i, t in enumerate(tokens):
        document, skip = t.documents[0], 0
        kept = chat.before(document.input_ids)
        reached = t.column[t.position < reach] + 1 - document.start
        for answer in document.answers(chat):
            own = reached[(reached >= answer.start) & (reached < answer.stop)]
            if not len(own):
                continue
            before = np.asarray([*kept, *answer.header], np.int64)
            ids = np.concatenate([before, document.input_ids[answer.start : own[-1]]])
            seen = None
            if document.seen is not None:
                seen = np.concatenate([np.ones(len(before), bool), document.seen[answer.start : own[-1]]])
            columns = own - answer.start + len(before) - 1
            place = Place("answer_only", i, skip, len(own))
            # Which tokens are supervised can differ between equal answers.
            key = ids.tobytes() + b"|" + columns.tobytes() + (b"" if seen is None else b"|" + seen.tobytes())
            distinct.setdefault(key, ForwardSequence(ids, columns, seen)).wanted.append(place)
            skip += len(own)
    return list(distinct.values())


def _one_behind(
    batches: Iterable[list[ForwardSequence]], head: SubsetHead, probe: HarmProbe | None
) -> Iterator[list[list[Halves]]]:
    """What every batch writes, sequence by sequence; handed out while the next one is being computed."""
    layers = LayerStates(head.model) if probe else None
    pending: tuple[list[ForwardSequence], Callable[[], Halves], Callable[[], Halves]] | None = None
    for batch in batches:
        values, scores = _computed(head, batch, layers, probe)
        started = batch, _to_host(values), _to_host(scores)
        if pending is not None:
            yield _collected(*pending)
        pending = started
    if pending is not None:
        yield _collected(*pending)


def _collected(
    batch: list[ForwardSequence], values: Callable[[], Halves], harm: Callable[[], Halves]
) -> list[list[Halves]]:
    halves, scores = (np.ascontiguousarray(of()) for of in (values, harm))
    if not (np.isfinite(halves).all() and np.isfinite(scores).all()):
        raise PactError(
            expected="finite logits from the model before its first step",
            got="NaN or infinity",
            consequence="The reference would be meaningless.",
            remedy="Check the weights and the precision of the model; bfloat16 is safer than float16.",
        )
    ends, answers = (np.cumsum([len(of(s)) for s in batch])[:-1] for of in (_columns, _prompt_ends))
    parts = zip(batch, np.split(halves, ends), np.split(scores, answers), strict=True)
    return [sequence.parts(own, harms) for sequence, own, harms in parts]


def _columns(sequence: ForwardSequence) -> Ints:
    return sequence.columns


def _prompt_ends(sequence: ForwardSequence) -> Ints:
    return sequence.prompt_ends


def _computed(
    head: SubsetHead, batch: list[ForwardSequence], layers: LayerStates | None, probe: HarmProbe | None
) -> tuple[Tensor, Tensor]:
    """[N, S] values and [A, 1] harm, float16, on the model's device.

    NaN where a value is not finite, so that infinity is seen too.
    """
    device = next(head.model.parameters()).device
    inputs = padded(batch, device)
    ids = inputs["input_ids"]

    def flat(of: Callable[[ForwardSequence], Ints]) -> Tensor:
        return to_device(np.concatenate([row * ids.shape[1] + of(s) for row, s in enumerate(batch)]), device)

    places, ends = flat(_columns), flat(_prompt_ends)
    request = Request(places, ids.reshape(-1)[places], normalise=True)
    with head.watch(request) as captures, layers.watch(ends, ids.shape) if layers else nullcontext([]) as states:
        head.decode(**inputs)
    harm = probe.score(layers.joined(states)) if layers and probe else torch.zeros(len(ends), device=device)
    return _halves(log_probabilities(head.one(captures))), _halves(harm[:, None])


def _halves(values: Tensor) -> Tensor:
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
