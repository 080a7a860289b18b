"""`CacheWriter`: a segment of a store while it is being computed, in a folder that the next process can continue.

The folder `SEGMENT.partial` holds the files of the segment to be, all of them in their final size, and beside them
`progress.safetensors`: for each batch of the work the checksum of what it wrote, 0 while it has not. The work is a pure
function of the store's identity and of the rows that it lacks, so the next build that needs the same rows finds it
there. A batch counts as done only if its values still match their checksum, in whatever order the system wrote both to
the disk.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from pact_plugins.chat.answers import Ints
from pact_plugins.chat.fingerprints import digest, keys_fingerprint
from pact_plugins.errors import PactError
from pact_plugins.storage import files
from pact_plugins.storage.cache import PARTIAL, Store
from pact_plugins.storage.identity import Identity
from pact_plugins.storage.segment import (
    INDEX,
    MANIFEST,
    Halves,
    Manifest,
    Words,
    checksum,
    file_checksum,
    halves_of,
    segment_files,
)
from pact_plugins.storage.tensors import TensorFile

logger = logging.getLogger(__name__)

PROGRESS = "progress"
_DONE = 1 << 32
"""Added to a batch's checksum, which may be 0."""

SEGMENTS = 4
"""Of a store at most, so that a row is found in a few searches."""

_COPIED_AT_ONCE = 1024
"""Rows in a batch where segments are made into one."""


class Place(NamedTuple):
    """Where values go: to `rows` rows of a document (its place among the keys) in a view, after the first `skip`."""

    view: str
    document: int
    skip: int
    rows: int


class CacheWriter:
    """Writes a segment of rows whose keys and sizes are known beforehand, batch by batch in any order.

    Used as a context, which closes its files and leaves them in `SEGMENT.partial` until `finish` has named them. One
    process at a time.

    Args:
        folder: of the store; the segment appears there only when `finish` has made it whole.
        identity: of the store; its `views` say which values there are.
        keys: [D] distinct keys of rows, in ascending order.
        counts: for each view, [D] values of each row; one that has none in the first view is no part of the segment.
        width: S, values of an answer token.
        batches: what each batch of the work computes, the same for the same rows; places of other views, or of rows
            that are no part of the segment, are passed over.

    Raises:
        PactError: there is no room for the segment, or its folder cannot be written to. Any method may raise it.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity,
        keys: Sequence[bytes],
        counts: Mapping[str, Ints],
        width: int,
        batches: Sequence[Sequence[Place]],
    ) -> None:
        self.identity, views = identity, identity.views
        self._counts = {view: counts[view] for view in views}
        self._kept: list[int] = np.flatnonzero(counts[views[0]]).tolist()
        self.batches = [[place for place in batch if self._holds(place)] for batch in batches]
        self._stops = {view: np.cumsum(counts[view]) for view in views}
        self._starts = {view: stop - counts[view] for view, stop in self._stops.items()}
        kept = [keys[i] for i in self._kept]
        self.target = folder / keys_fingerprint(kept)
        self._index: Words = np.zeros((3 + len(views), len(kept)), np.uint64)
        self._index[:2] = halves_of(kept)
        self._index[3:] = [starts[self._kept] for starts in self._starts.values()]
        self._values = {view: int(counts[view].sum()) for view in views}
        self._width = width
        self._partial = self.target.with_name(self.target.name + PARTIAL)
        self._files = segment_files(self._partial, len(kept), self._values, width)
        # Its name is the plan: the record of any other work is not this tensor.
        plan = digest([identity.name, keys_fingerprint(kept), self.batches])
        # The last entry counts the microseconds of building.
        record = TensorFile(self._partial / f"{PROGRESS}.safetensors", plan, "U64", (len(batches) + 1,))
        self._files[PROGRESS] = record
        self._needed = sum(file.size for file in self._files.values())
        try:
            arrays = self._open()
        except (OSError, ValueError):
            self._start()
            arrays = self._open()
        self._record: Words = arrays.pop(PROGRESS)
        del arrays[INDEX]
        self._views: dict[str, Halves] = arrays
        with ExitStack() as stack, files.storing(self._partial):
            self._handles = {
                name: stack.enter_context(file.path.open("r+b", buffering=0)) for name, file in self._files.items()
            }
            self._close = stack.pop_all().close
        self._clock = time.monotonic()

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _open(self) -> dict[str, Any]:
        return {name: file.open() for name, file in self._files.items()}

    def _start(self) -> None:
        """All files anew, in place of whatever is there; the record last, which makes the others count."""
        with files.storing(self._partial):
            if self._partial.exists():
                shutil.rmtree(self._partial)
        with ExitStack() as undo, files.storing(self._partial, self._needed):
            self._partial.mkdir(parents=True)
            undo.callback(shutil.rmtree, self._partial)
            for file in self._files.values():
                file.allocate()
            undo.pop_all()

    def to_do(self) -> list[int]:
        """Numbers of the batches that are not stored, or whose values were damaged since."""
        entries = self._record[:-1].tolist()
        return [
            number
            for number, (entry, batch) in enumerate(zip(entries, self.batches, strict=True))
            if batch and (not entry or entry != self._entry(self._stored(number)))
        ]

    def store(self, number: int, values: Iterable[tuple[Place, Halves]]) -> None:
        """Stores contiguous values [rows, S] at their places, all of those of a batch; others are passed over."""
        own = [(place, part) for place, part in values if self._holds(place)]
        if not own:
            return
        with files.storing(self._partial):
            for place, part in own:
                self._write(place.view, int(self._starts[place.view][place.document]) + place.skip, part)
            self._write(PROGRESS, number, np.asarray([self._entry(part for _, part in own)], np.uint64))
            self._count_time()

    def finish(self) -> float:
        """Completes the folder and gives it its name.

        Returns:
            Seconds of this build, and of those that it continued.

        Raises:
            PactError: some batch is not stored, or not as it was written; the next build stores it again.
        """
        if missing := len(self.to_do()):
            raise PactError(
                expected=f"the values of all {len(self.batches):,} batches in {self._partial}, as they were written",
                got=f"{missing:,} batches that were not stored or were changed since",
                consequence="The run would be held to a wrong reference.",
                remedy="Start again, which computes them again; if it happens twice, check the disk.",
            )
        views = list(self._views.values())
        starts, stops = (
            zip(*(of[view][self._kept].tolist() for view in self._views), strict=True)
            for of in (self._starts, self._stops)
        )
        for entry, (first, last) in enumerate(zip(starts, stops, strict=True)):
            self._index[2, entry] = checksum(v[a:b] for v, a, b in zip(views, first, last, strict=True))
        with files.storing(self._partial):
            self._write(INDEX, 0, self._index)
            for handle in self._handles.values():
                os.fsync(handle.fileno())
            self._count_time()
            seconds = int(self._record[-1]) / 1e6
            manifest = Manifest(
                identity=self.identity,
                documents=len(self._kept),
                values=self._values,
                width=self._width,
                index=file_checksum(self._files[INDEX].path),
            )
            files.write(self._partial / MANIFEST, manifest.model_dump())
            self._partial.rename(self.target)
            (self.target / self._files[PROGRESS].path.name).unlink()
        return seconds

    def abandon(self) -> None:
        """Gives back the room of a segment that is not to be continued."""
        shutil.rmtree(self._partial)

    def _holds(self, place: Place) -> bool:
        return place.view in self._counts and bool(self._counts[place.view][place.document])

    def _write(self, name: str, first: int, values: Any) -> None:
        self._files[name].write(self._handles[name], first, values)

    def _stored(self, batch: int) -> Iterable[Halves]:
        for view, document, skip, rows in self.batches[batch]:
            first = int(self._starts[view][document]) + skip
            yield self._views[view][first : first + rows]

    def _entry(self, values: Iterable[Halves]) -> int:
        return _DONE + checksum(values)

    def _count_time(self) -> None:
        """Adds the time since the last call to that of this build and of those that it continues."""
        now = time.monotonic()
        passed = np.uint64(round((now - self._clock) * 1e6))
        self._write(PROGRESS, len(self.batches), self._record[-1:] + passed)
        self._clock = now


def compact(store: Store) -> None:
    """Makes one segment of all, where a store has more than `SEGMENTS`; to be called under its lock.

    Values are copied as they are. A store that has no room for the copy, or a damaged row, stays as it is.
    """
    if len(store.segments) <= SEGMENTS:
        return
    try:
        kept = _merged(store)
    except PactError as error:
        logger.warning("PACT: %s stays in %d parts: %s", store.folder, len(store.segments), error)
        return
    with files.storing(store.folder):
        for segment in store.segments:
            if segment.folder != kept:
                discard(segment.folder)


def _merged(store: Store) -> Path:
    """The folder of a segment with all rows of a store."""
    segments, views = store.segments, store.identity.views
    keys = np.concatenate([segment.keys for segment in segments], 1)
    places = [(segment, entry) for segment in segments for entry in range(len(segment))]
    order = np.lexsort((keys[1], keys[0]))
    # Where an earlier merger was cut off, the largest segment has the rows of the others.
    order = order[np.append(True, (np.diff(keys[:, order]) != 0).any(0))]
    if len(segments[0]) == len(order):
        return segments[0].folder
    counts = {view: np.concatenate([segment.counts(view) for segment in segments])[order] for view in views}
    numbers = range(len(order))
    batches = [
        [Place(v, i, 0, int(counts[v][i])) for i in numbers[start : start + _COPIED_AT_ONCE] for v in views]
        for start in numbers[::_COPIED_AT_ONCE]
    ]

    def value(place: Place) -> Halves:
        segment, entry = places[order[place.document]]
        segment.check(entry)
        return segment.read(place.view, entry)

    raw = keys[:, order].T.astype(">u8").tobytes()
    split = [raw[start : start + 16] for start in range(0, len(raw), 16)]
    with CacheWriter(store.folder, store.identity, split, counts, segments[0].manifest.width, batches) as writer:
        try:
            for number in writer.to_do():
                writer.store(number, [(place, value(place)) for place in writer.batches[number]])
            writer.finish()
        except PactError:
            writer.abandon()
            raise
    return writer.target


def discard(segment: Path) -> None:
    """Removes a segment; it is gone for readers at once."""
    going = segment.with_name(segment.name + PARTIAL)
    if going.exists():
        shutil.rmtree(going)
    shutil.rmtree(segment.rename(going))
