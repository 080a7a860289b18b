"""The reference cache, found or built: forward passes of the model as it is before its first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pact_plugins.chat.answers import AnswerTokens, Bools, Document, Ints
from pact_plugins.chat.format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.method.harm_probe import HarmProbe
from pact_plugins.model.forward import batches_by_length, evaluating, padded, to_device
from pact_plugins.model.layer_states import LayerStates
from pact_plugins.model.progress import progress
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.subset_head import Request, SubsetHead
from pact_plugins.storage import files
from pact_plugins.storage.cache import ReferenceCache, Store, log_probabilities
from pact_plugins.storage.identity import Identity
from pact_plugins.storage.segment import Halves
from pact_plugins.storage.writer import CacheWriter, Place, compact

_WHAT = "computing this reference"

_VISIBLE = 120.0
"""Seconds until a new folder shows on every node: network file systems remember for a while that it was not there."""


@dataclass(frozen=True)
class Computed:
    """What a run added to the stores.

    Attributes:
        rows: rows that went through the model.
        prompts: rows of which only the prompts did, for a newly fitted harm probe.
        seconds: what it took, those of a build that it continued included.
    """

    rows: int = 0
    prompts: int = 0
    seconds: float = 0.0

    def words(self, rows: int) -> str:
        """What of `rows` that a run needs this is, for people."""
        if not (self.rows or self.prompts):
            return "found"
        parts = [f"{self.rows:,} of {rows:,} rows computed"] if self.rows else []
        if self.prompts:
            parts.append(f"{self.prompts:,} prompts read for the harm probe")
        return f"{', '.join(parts)}, in {self.seconds:.1f} s"


def open_or_build(
    folder: Path,
    identity: Identity,
    documents: Sequence[Document],
    head: SubsetHead,
    chat: ChatFormat,
    *,
    probe: Callable[[], HarmProbe] | None = None,
    ranks: Ranks = ALONE,
    show_progress: bool = True,
) -> tuple[ReferenceCache, Computed]:
    """The reference of `documents`; what the stores below `folder` lack of it is computed with `head`'s model as it is.

    Call it in the autocast context of the trainer's own forward passes. Equal documents, and without the prompt equal
    answers of those that are computed, go through the model once. What is computed becomes a segment of its store,
    which appears only when it is whole. A build that was interrupted is continued, and one that another run is at is
    waited for.

    Each rank computes its part, in as many forward passes as every other rank. Of those that share a disk the first one
    writes; none returns before it sees all values.

    Args:
        folder: of the stores.
        identity: what the values are computed with.
        documents: each with an answer token.
        head: of the model.
        chat: what the chat template puts around turns.
        probe: learns what scores the harm of prompts, if that is wanted and lacks.
        ranks: of this run, with the same weights and arguments but for `folder`.
        show_progress: whether there is a progress bar.

    Raises:
        PactError: the model gives logits that are not finite, or a store is damaged or cannot be written.
    """
    # In the order of their keys: the same batches, and so the same rounding, whatever the order of the data.
    distinct = sorted({d.key: d for d in documents}.values(), key=lambda d: d.key)
    keys = [d.key for d in distinct]
    cache, added = ReferenceCache(folder, identity), Computed()
    if any(ranks.exchange(bool(cache.missing(keys).any()), _WHAT)):
        first = files.first_on_disk(folder, ranks)
        with ExitStack() as locks:
            for store in cache.stores:
                locks.enter_context(files.locked(store.folder, _WHAT, ranks, holds=first))
            # As it is now: another run may have computed it meanwhile.
            cache = ReferenceCache(folder, identity)
            added = _build(cache, distinct, head, chat, probe, ranks, show_progress, writes=first)
        deadline = time.monotonic() + _VISIBLE
        while (cache := ReferenceCache(folder, identity)).missing(keys).any() and time.monotonic() < deadline:
            time.sleep(0.5)
    for store in cache.stores:
        store.note_use()
    return cache, added


def _build(
    cache: ReferenceCache,
    distinct: Sequence[Document],
    head: SubsetHead,
    chat: ChatFormat,
    learn: Callable[[], HarmProbe] | None,
    ranks: Ranks,
    show_progress: bool,
    *,
    writes: bool,
) -> Computed:
    """Computes what any rank's disk lacks; `writes`: whether this rank stores what its own does."""
    lacking = cache.missing([d.key for d in distinct])
    wanted = np.logical_or.reduce(ranks.exchange(lacking, _WHAT))
    rows: list[int] = np.flatnonzero(wanted.any(0)).tolist()
    if not rows:
        return Computed()
    lacking, wanted = lacking[:, rows], wanted[:, rows]
    tokens = [AnswerTokens.of([distinct[i]], chat) for i in rows]
    keys = [distinct[i].key for i in rows]
    reach = cache.identity.reach
    sizes, masks = value_counts(tokens, reach), zip(cache.stores, wanted, strict=True)
    counts = {view: sizes[view] * mask for store, mask in masks for view in store.identity.views}
    probe = None
    if "harm" in counts and counts["harm"].any():
        assert learn is not None, "harm is scored by a probe"
        probe = learn()
    work = forward_sequences(tokens, counts, reach, chat)
    batches = [[work[i] for i in batch] for batch in batches_by_length([len(s.input_ids) for s in work])]
    places = [[place for sequence in batch for place in sequence.wanted] for batch in batches]
    with ExitStack() as stack:
        writers: list[CacheWriter] = []
        for store, mask in zip(cache.stores, lacking, strict=True):
            if writes and mask.any():
                own = {view: counts[view] * mask for view in store.identity.views}
                width = 1 if "harm" in own else len(head.ids)
                writer = CacheWriter(store.folder, store.identity, keys, own, width, places)
                writers.append(stack.enter_context(writer))
        _fill(writers, batches, head, probe, ranks, show_progress)
        # Harm first: if only it is finished, what is left needs no forward pass.
        seconds = [writer.finish() for writer in reversed(writers)]
    for store in cache.stores if writers else ():
        compact(Store(store.folder.parent, store.identity))
    whole = int(wanted[0].sum())
    return Computed(whole, len(rows) - whole, max(ranks.exchange(max(seconds, default=0.0), _WHAT)))


def _fill(
    writers: Sequence[CacheWriter],
    batches: Sequence[list[ForwardSequence]],
    head: SubsetHead,
    probe: HarmProbe | None,
    ranks: Ranks,
    show_progress: bool,
) -> None:
    """Computes the batches that a writer of any rank has not stored yet, and stores them."""
    missing = ranks.exchange([number for writer in writers for number in writer.to_do()], _WHAT)
    to_do = sorted({number for of_rank in missing for number in of_rank})
    done = len(batches) - len(to_do)
    what = f"PACT: computing the reference{', continued' if done else ''}"
    with evaluating(head.model):
        own = computed((batches[number] for number in ranks.part(to_do)), head, probe)
        merged = ranks.merged(to_do, own, _WHAT)
        for number, values in progress(merged, what, len(batches), show_progress, done=done):
            for writer in writers:
                writer.store(number, values)


@dataclass(frozen=True)
class ForwardSequence:
    """What one row of a forward pass computes.

    Attributes:
        input_ids: [L] what to run.
        columns: [n] places whose next token is an answer token.
        seen, positions: [L] as in the document (`answers.Document`), or None.
        wanted: every place that something is written to: log-probabilities, or harm.
        prompt_ends: [A] places of the last tokens of the answers' prompts, whose harm is scored.
    """

    input_ids: Ints
    columns: Ints
    seen: Bools | None = None
    positions: Ints | None = None
    wanted: list[Place] = field(default_factory=list)
    prompt_ends: Ints = field(default_factory=lambda: np.empty(0, np.int64))


def value_counts(tokens: Sequence[AnswerTokens], reach: int | None) -> dict[str, Ints]:
    """For each view, how many values each document has, given the answer tokens of each by itself."""
    counts = {
        "full": [len(t) for t in tokens],
        "answer_only": [int((t.position < (reach or 0)).sum()) for t in tokens],
        "harm": [len(t.prompt_end) for t in tokens],
    }
    return {view: np.asarray(of, np.int64) for view, of in counts.items()}


def forward_sequences(
    tokens: Sequence[AnswerTokens], counts: Mapping[str, Ints], reach: int | None, chat: ChatFormat
) -> list[ForwardSequence]:
    """All that has to go through the model for the reference of documents.

    Args:
        tokens: the answer tokens of each document by itself.
        counts: how many values of each document are wanted, by view: all or none.
        reach: for how many tokens of each answer there is a view without the prompt.
        chat: what the chat template puts before answers.
    """
    sequences = list(_full_sequences(tokens, counts))
    if "answer_only" in counts:
        assert reach is not None, "it is what the view has"
        sequences += _answer_only_sequences(tokens, counts["answer_only"], reach, chat)
    return sequences


def _full_sequences(tokens: Sequence[AnswerTokens], counts: Mapping[str, Ints]) -> Iterator[ForwardSequence]:
    none = np.zeros(len(tokens), np.int64)
    for i, (t, values, harms) in enumerate(
        zip(tokens, counts.get("full", none).tolist(), counts.get("harm", none).tolist(), strict=True)
    ):
        document = t.documents[0]
        columns = (t.column - document.start)[:values]
        ends = (t.prompt_end - document.start)[:harms]
        if not values and not harms:
            continue
        # Nothing after the last answer token is needed; of the prompts alone, nothing after the last of them.
        cut = document.up_to(int((columns if values else ends)[-1]) + 1)
        wanted = [Place(view, i, 0, rows) for view, rows in (("full", values), ("harm", harms)) if rows]
        yield ForwardSequence(cut.input_ids, columns, cut.seen, cut.positions, wanted, ends)


def _answer_only_sequences(
    tokens: Sequence[AnswerTokens], counts: Ints, reach: int, chat: ChatFormat
) -> list[ForwardSequence]:
    chat.require_header("build the reference without the prompt")
    distinct: dict[bytes, ForwardSequence] = {}
    for i, t in enumerate(tokens):
        if not counts[i]:
            continue
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


def computed(
    batches: Iterable[list[ForwardSequence]], head: SubsetHead, probe: HarmProbe | None
) -> Iterator[list[tuple[Place, Halves]]]:
    """What every batch writes, and where; handed out while the next one is being computed.

    Call it with the model in eval mode, and without gradients.

    Raises:
        PactError: the model gives logits that are not finite.
    """
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
) -> list[tuple[Place, Halves]]:
    halves, scores = (np.ascontiguousarray(of()) for of in (values, harm))
    if not (np.isfinite(halves).all() and np.isfinite(scores).all()):
        raise PactError(
            expected="finite logits from the model before its first step",
            got="NaN or infinity",
            consequence="The reference would be meaningless.",
            remedy="Check the weights and the precision of the model; bfloat16 is safer than float16.",
        )
    ends, answers = (np.cumsum([len(of(s)) for s in batch])[:-1] for of in (_COLUMNS, _PROMPT_ENDS))
    parts = zip(batch, np.split(halves, ends), np.split(scores, answers), strict=True)
    return [(place, own if place.view != "harm" else harms) for s, own, harms in parts for place in s.wanted]


_COLUMNS, _PROMPT_ENDS = attrgetter("columns"), attrgetter("prompt_ends")


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

    places, ends = flat(_COLUMNS), flat(_PROMPT_ENDS)
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
