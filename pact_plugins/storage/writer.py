"""`CacheWriter`: a reference cache while it is being computed, in a folder that the next process can continue.

The folder `TARGET.partial` holds the files of the cache to be, all of them in their final size, and beside them
`progress.safetensors`: for each batch of the work the checksum of what it wrote, 0 while it has not. The work is a pure
function of the cache's identity, so the next build of that identity finds it there. A batch counts as done only if its
values still match their checksum, in whatever order the system wrote both to the disk.
"""

from __future__ import annotations

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
from pact_plugins.storage.cache import INDEX, MANIFEST, Halves, Words, cache_files, checksum, file_checksum
from pact_plugins.storage.tensors import TensorFile

PARTIAL, PROGRESS = ".partial", "progress"
_DONE = 1 << 32
"""Added to a batch's checksum, which may be 0."""


class Place(NamedTuple):
    """Where values go: to `rows` rows of a document (its place among the keys) in a view, after the first `skip`."""

    view: str
    document: int
    skip: int
    rows: int


class CacheWriter:
    """Writes the cache of D documents, whose keys and sizes are known beforehand, batch by batch in any order.

    Used as a context, which closes its files and leaves them in `TARGET.partial` until `finish` has named them. One
    process at a time.

    Args:
        target: the cache's folder; it appears only when `finish` has made it whole.
        identity: goes into the manifest; its `views` say which values there are.
        keys: [D] distinct keys of the documents, in ascending order.
        counts: for each view, [D] values of each document.
        safety_tokens: number of safety tokens S.
        batches: what each batch of the work writes, the same for the same identity.

    Raises:
        PactError: there is no room for the cache, or its folder cannot be written to. Any method may raise it.
    """

    def __init__(
        self,
        target: Path,
        identity: dict[str, Any],
        keys: Sequence[bytes],
        counts: Mapping[str, Ints],
        safety_tokens: int,
        batches: Sequence[Sequence[Place]],
    ) -> None:
        self.target, self.identity, self.batches = target, identity, batches
        views: list[str] = identity["views"]
        self._stops = {view: np.cumsum(counts[view]) for view in views}
        self._starts = {view: stop - counts[view] for view, stop in self._stops.items()}
        self._index: Words = np.zeros((3 + len(views), len(keys)), np.uint64)
        self._index[:2] = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2).T
        self._index[3:] = list(self._starts.values())
        self._rows = {view: int(counts[view].sum()) for view in views}
        self._safety_tokens = safety_tokens
        self._partial = target.with_name(target.name + PARTIAL)
        self._files = cache_files(self._partial, views, len(keys), self._rows, safety_tokens)
        # Its name is the plan: the record of any other work is not this tensor.
        plan = digest([identity, keys_fingerprint(keys), batches])
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
        return [n for n, entry in enumerate(entries) if not entry or entry != self._entry(n, self._stored(n))]

    def store(self, batch: int, values: Sequence[Halves]) -> None:
        """Stores [rows, S] contiguous values for each place of a batch, [rows, 1] for one in `harm`."""
        with files.storing(self._partial):
            for place, part in zip(self.batches[batch], values, strict=True):
                first = int(self._starts[place.view][place.document]) + place.skip
                self._write(place.view, first, part)
            self._write(PROGRESS, batch, np.asarray([self._entry(batch, values)], np.uint64))
            self._count_time()

    def finish(self) -> None:
        """Completes the folder and gives it its name.

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
        starts, stops = (zip(*(of[v].tolist() for v in self._views), strict=True) for of in (self._starts, self._stops))
        for entry, (first, last) in enumerate(zip(starts, stops, strict=True)):
            self._index[2, entry] = checksum(v[a:b] for v, a, b in zip(views, first, last, strict=True))
        with files.storing(self._partial):
            self._write(INDEX, 0, self._index)
            for handle in self._handles.values():
                os.fsync(handle.fileno())
            self._count_time()
            manifest = {
                "identity": self.identity,
                "documents": self._index.shape[1],
                "answer_tokens": self._rows["full"],
                "reached_tokens": self._rows.get("answer_only", 0),
                "answers": self._rows.get("harm", 0),
                "safety_tokens": self._safety_tokens,
                "seconds": int(self._record[-1]) / 1e6,
                "index": file_checksum(self._files[INDEX].path),
            }
            files.write(self._partial / MANIFEST, manifest)
            self._partial.rename(self.target)
            (self.target / self._files[PROGRESS].path.name).unlink()

    def _write(self, name: str, first: int, values: Any) -> None:
        self._files[name].write(self._handles[name], first, values)

    def _stored(self, batch: int) -> Iterable[Halves]:
        for view, document, skip, rows in self.batches[batch]:
            first = int(self._starts[view][document]) + skip
            yield self._views[view][first : first + rows]

    def _entry(self, batch: int, values: Iterable[Halves]) -> int:
        return _DONE + checksum(values)

    def _count_time(self) -> None:
        """Adds the time since the last call to that of this build and of those that it continues."""
        now = time.monotonic()
        passed = np.uint64(round((now - self._clock) * 1e6))
        self._write(PROGRESS, len(self.batches), self._record[-1:] + passed)
        self._clock = now
