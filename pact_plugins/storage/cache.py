"""`ReferenceCache`: what the model said before its first step, on disk, found again by the content of each row.

The reference of a row is a pure function of the row and of an `Identity`, so it is computed once, before the first step
of the first run that needs it, and looked up during every epoch of every run. The rows of one identity are a *store*, a
folder named by it that all data sets share; a store is made of *segments*, of which a build adds one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pact_plugins.chat.answers import AnswerTokens, Bools, Document, Ints
from pact_plugins.errors import MissingReferenceError, PactError
from pact_plugins.model.subset_head import Capture
from pact_plugins.storage.identity import Identity
from pact_plugins.storage.segment import Halves, Segment, Words, halves_of

PARTIAL = ".partial"
"""Ends the name of a segment that is being made, or being removed."""


@dataclass(frozen=True)
class Reference:
    """The reference of the N answer tokens of a batch, in A answers.

    Attributes:
        full: [N, S] log-probabilities with the full context.
        answer_only: [N, S] without the prompt, and beyond the gate's reach a copy of `full`, which the gate then leaves
            as it is; None without the gate.
        harm: [A] probability that the prompt of an answer asks for harm (`harm_probe`); None where nothing is damped.
    """

    full: Halves
    answer_only: Halves | None
    harm: Halves | None


class Store:
    """The rows of one identity, opened for reading as they are now.

    Args:
        folder: of the stores.
        identity: of this one.

    Raises:
        PactError: a segment is damaged, or of something else.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity, self.folder = identity, folder / identity.name
        # Most rows are in the largest.
        self.segments = sorted(_opened(self.folder, identity), key=lambda segment: -len(segment))

    def find(self, document: Document) -> tuple[Segment, int]:
        """The segment of a row, and its entry there.

        Raises:
            PactError: the row is in none, or its values are damaged.
        """
        for segment in self.segments:
            if (entry := segment.find(document.key)) is not None:
                return segment, entry
        raise MissingReferenceError(
            expected=f"every training sequence among the {self.documents:,} of the reference cache {self.folder}",
            got=f"one of {len(document.input_ids)} tokens that is not: {document.input_ids[:16].tolist()} ...",
            consequence="Its answers would train without PACT.",
            remedy="The batch differs from the data set as it was before the first step: does something truncate, "
            "augment or rewrite rows while training? Switch that off, or report the trainer's settings.",
        )

    def checksums(self, keys: Words) -> tuple[Words, Bools]:
        """[n] checksums of the values of rows by their keys [2, n], and [n] whether they are here at all."""
        found, here = np.zeros(keys.shape[1], np.uint64), np.zeros(keys.shape[1], bool)
        for segment in self.segments:
            rest = np.flatnonzero(~here)
            entries = segment.entries(keys[:, rest])
            rest, entries = rest[entries >= 0], entries[entries >= 0]
            found[rest], here[rest] = segment.checksums[entries], True
        return found, here

    def verify(self) -> None:
        """Reads every value and compares it with its checksum.

        Raises:
            PactError: a value was changed, or is not finite.
        """
        for segment in self.segments:
            segment.verify()

    @property
    def documents(self) -> int:
        """How many rows there are."""
        return sum(map(len, self.segments))

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(segment.size for segment in self.segments)

    def note_use(self) -> None:
        """Has the folder tell when it was last of use; where nobody may write, nobody prunes either."""
        with suppress(OSError):
            os.utime(self.folder)


class ReferenceCache:
    """The stores of a run, opened for reading.

    Args:
        folder: of all stores.
        identity: of the run.

    Raises:
        PactError: a segment is damaged, or of something else.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity = identity
        self.stores = [Store(folder, own) for own in identity.stores]

    @property
    def folder(self) -> Path:
        """Where the log-probabilities are."""
        return self.stores[0].folder

    @property
    def where(self) -> str:
        """The same, for people."""
        return str(self.folder)

    def look_up(self, tokens: AnswerTokens) -> Reference:
        """The reference of every answer token of a batch.

        Raises:
            PactError: a document is not in the cache, or its values are damaged.
        """
        values, *harms = ([store.find(document) for document in tokens.documents] for store in self.stores)
        full = self._read(0, "full", values, tokens.counts)
        harm = None
        if harms:
            first = np.cumsum(tokens.counts) - tokens.counts
            answers = np.diff(tokens.answer[first], append=len(tokens.prompt_end))
            harm = self._read(1, "harm", harms[0], answers)[:, 0]
        reach = self.identity.reach
        if reach is None:
            return Reference(full, None, harm)
        reached = tokens.position < reach
        before = np.concatenate([[0], np.cumsum(reached)])
        ends = np.cumsum(tokens.counts)
        counts = before[ends] - before[ends - tokens.counts]
        answer_only = full.copy()
        answer_only[reached] = self._read(0, "answer_only", values, counts)
        return Reference(full, answer_only, harm)

    def missing(self, keys: Sequence[bytes]) -> Bools:
        """[stores, n] whether a row is not there, by its key."""
        halves = halves_of(keys)
        return np.asarray([~store.checksums(halves)[1] for store in self.stores])

    def fingerprint(self, keys: Iterable[bytes]) -> str:
        """Of all values of some rows: another if any bit of them is.

        Raises:
            PactError: one is not there.
        """
        halves, found = halves_of(sorted(set(keys))), hashlib.blake2b(digest_size=16)
        for store in self.stores:
            checksums, here = store.checksums(halves)
            if not here.all():
                raise MissingReferenceError(
                    expected=f"all {len(here):,} rows of the run in {store.folder}",
                    got=f"{np.count_nonzero(here):,} of them",
                    consequence="The others have no reference.",
                    remedy="Point `pact.cache_dir` to where the run began, or start from the original model.",
                )
            found.update(checksums.tobytes())
        return found.hexdigest()

    @property
    def size(self) -> int:
        """Bytes on disk, rows of other data sets included."""
        return sum(store.size for store in self.stores)

    def verify(self) -> None:
        """Reads every value and compares it with its checksum.

        Raises:
            PactError: a value was changed, or is not finite.
        """
        for store in self.stores:
            store.verify()

    def _read(self, store: int, view: str, found: Sequence[tuple[Segment, int]], counts: Ints) -> Halves:
        """The values of these rows in one view, which are `counts` of each."""
        parts = [segment.read(view, entry, count) for (segment, entry), count in zip(found, counts, strict=True)]
        return np.concatenate([self.stores[store].segments[0].views[view][:0], *parts])


def _opened(store: Path, identity: Identity) -> list[Segment]:
    paths = segments_in(store)
    try:
        return [Segment(path, identity) for path in paths]
    except PactError:
        if segments_in(store) == paths:
            raise
        return _opened(store, identity)  # another run has made one of several meanwhile


def segments_in(store: Path) -> list[Path]:
    """The folders of a store's segments."""
    return sorted(path for path in store.glob("*") if path.is_dir() and path.suffix != PARTIAL)


def log_probabilities(capture: Capture) -> torch.Tensor:
    """[N, S] log-probabilities under the full-vocabulary softmax, from a capture with a log-normaliser."""
    assert capture.log_normaliser is not None, "the request must ask for the log-normaliser"
    return capture.logits - capture.log_normaliser.unsqueeze(-1)
