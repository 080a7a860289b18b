"""`ReferenceCache`: what the model said before its first step, on disk, found again by content.

The reference is a pure function of a training sequence, so it is computed once, before the first step, and looked up
during every epoch. A cache is a folder::

    manifest.json      identity (model, tokenizer, tokens, format of the chat, data), sizes, checksum of the index
    index.npy          [F, D] uint64, sorted by key: both halves of the key, checksum of the values, offset in each view
    full.npy           [T, S] float16 log-probabilities of the reference with its full context
    answer_only.npy    [R, S] the same without the prompt; only if the objective's gate needs it

D counts the distinct documents, T their answer tokens, R those of them that the gate can reach. A document's values end
where the next one's begin. Log-probabilities rather than logits: both objectives need exactly these or are indifferent,
and raw logits lose precision at float16.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pact_plugins.answers import AnswerTokens, Document, Ints
from pact_plugins.errors import MissingReferenceError, PactError
from pact_plugins.subset_head import Capture

FORMAT = 2
Halves = npt.NDArray[np.float16]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Reference:
    """Reference log-probabilities of the N answer tokens of a batch.

    Attributes:
        full: [N, S] with the full context.
        answer_only: [N, S] without the prompt, and beyond the gate's reach a copy of `full`, which the gate then leaves
            as it is; None if the cache does not hold that view.
    """

    full: Halves
    answer_only: Halves | None


class ReferenceCache:
    """A cache opened for reading; index and values stay memory-mapped.

    Args:
        folder: a folder made by `CacheWriter`.
        identity: what the cache must have been made for, field by field; None opens any of this format.

    Raises:
        PactError: the folder is damaged, or was made for something else.
    """

    def __init__(self, folder: Path, identity: dict[str, Any] | None) -> None:
        self.folder = folder
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
            found = dict(self.manifest["identity"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        identity = {**found, "format": FORMAT} if identity is None else identity
        differing = [k for k in {**identity, **found} if identity.get(k) != found.get(k)]
        if differing:
            raise PactError(
                expected="; ".join(f"{k} = {identity.get(k)}" for k in differing),
                got="; ".join(f"{k} = {found.get(k)}" for k in differing) + f" in {folder}",
                consequence="The run would be held to another model's or other data's reference.",
                remedy="Remove that folder, or set `pact.cache_dir`; the next run builds a fresh cache.",
            )
        try:
            sound = self.manifest["index"] == _file_checksum(folder / "index.npy")
            self._index: Words = _opened(folder / "index.npy")
            self._views: dict[str, Halves] = {view: _opened(folder / f"{view}.npy") for view in found["views"]}
            self._reach = int(found["reach"])
            rows = {"full": self.manifest["answer_tokens"], "answer_only": self.manifest["reached_tokens"]}
            shapes = {view: (rows[view], self.manifest["safety_tokens"]) for view in self._views}
            sound &= self._index.shape == (3 + len(self._views), self.manifest["documents"])
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        if not sound or any(v.shape != shapes[n] or v.dtype != np.float16 for n, v in self._views.items()):
            raise self._damaged("the index or the size of a file does not match the manifest")
        # The rows of the index are contiguous, so a binary search touches few of its pages.
        self._high, self._low, self._checksums = self._index[:3]
        self._offsets = dict(zip(self._views, self._index[3:], strict=True))

    def look_up(self, tokens: AnswerTokens) -> Reference:
        """The reference of every answer token of a batch.

        Raises:
            PactError: a document is not in the cache, or its values are damaged.
        """
        found = [self._find(document) for document in tokens.documents]
        full = self._read("full", found, tokens, tokens.counts)
        if "answer_only" not in self._views:
            return Reference(full, None)
        reached = tokens.position < self._reach
        before = np.concatenate([[0], np.cumsum(reached)])
        ends = np.cumsum(tokens.counts)
        counts = before[ends] - before[ends - tokens.counts]
        answer_only = full.copy()
        answer_only[reached] = self._read("answer_only", found, tokens, counts)
        return Reference(full, answer_only)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def verify(self) -> None:
        """Reads every value and compares it with its checksum.

        Raises:
            PactError: a value was changed.
        """
        for entry in range(len(self._high)):
            self._check(entry)

    def _find(self, document: Document) -> int:
        """The document's entry in the index, whose values match their checksum."""
        high, low = (np.uint64(int.from_bytes(half, "big")) for half in (document.key[:8], document.key[8:]))
        at = int(np.searchsorted(self._high, high))
        while at < len(self._high) and self._high[at] == high:
            if self._low[at] == low:
                self._check(at)
                return at
            at += 1
        raise MissingReferenceError(
            expected=f"every training sequence among the {len(self._high):,} of the reference cache {self.folder}",
            got=f"one of {len(document.input_ids)} tokens that is not: {document.input_ids[:16].tolist()} ...",
            consequence="Its answers would train without PACT.",
            remedy="The batch differs from the data set as it was before the first step: does something truncate, "
            "augment or rewrite rows while training? Switch that off, or report the trainer's settings.",
        )

    def _read(self, view: str, entries: list[int], tokens: AnswerTokens, counts: Ints) -> Halves:
        """The values of these entries in one view, which are `counts` rows of each."""
        parts = [self._values(view, entry) for entry in entries]
        for part, document, count in zip(parts, tokens.documents, counts, strict=True):
            if len(part) != count:
                raise self._damaged(f"document {document.key.hex()} has {len(part)} values in {view}, not {count}")
        return np.concatenate([self._views[view][:0], *parts])

    def _values(self, view: str, entry: int) -> Halves:
        offsets, values = self._offsets[view], self._views[view]
        stop = int(offsets[entry + 1]) if entry + 1 < len(offsets) else len(values)
        return values[int(offsets[entry]) : stop]

    def _check(self, entry: int) -> None:
        if _checksum(self._values(view, entry) for view in self._views) != self._checksums[entry]:
            key = f"{int(self._high[entry]):016x}{int(self._low[entry]):016x}"
            raise self._damaged(f"the values of document {key} do not match their checksum")

    def _damaged(self, what: str) -> PactError:
        return PactError(
            expected=f"an intact reference cache in {self.folder}",
            got=what,
            consequence="The run would be held to a wrong reference.",
            remedy=f"Remove {self.folder}; the next run builds it again.",
        )


class CacheWriter:
    """Writes the cache of D documents, whose keys and sizes are known beforehand, in any order of its values.

    Args:
        target: the cache's folder; it appears only when `finish` has made it whole.
        identity: goes into the manifest; its `views` say which values there are.
        keys: [D] distinct keys of the documents.
        counts: for each view, [D] values of each document.
        safety_tokens: number of safety tokens S.
    """

    def __init__(
        self,
        target: Path,
        identity: dict[str, Any],
        keys: Sequence[bytes],
        counts: Mapping[str, Ints],
        safety_tokens: int,
    ) -> None:
        self._started = time.monotonic()
        self.target, self.identity = target, identity
        self._partial = target.with_name(f"{target.name}.partial-{time.time_ns()}")
        self._partial.mkdir(parents=True)
        halves = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2).astype(np.uint64)
        order = np.lexsort((halves[:, 1], halves[:, 0]))
        stops = {view: np.cumsum(counts[view][order]) for view in identity["views"]}
        starts = {view: stop - counts[view][order] for view, stop in stops.items()}
        self._index = np.zeros((3 + len(starts), len(order)), np.uint64)
        self._index[:2] = halves[order].T
        self._index[3:] = list(starts.values())
        self._stops = list(stops.values())
        self._offset = {view: np.empty_like(start) for view, start in starts.items()}
        for view, start in starts.items():
            self._offset[view][order] = start
        self._files = {
            view: np.lib.format.open_memmap(
                self._partial / f"{view}.npy", "w+", np.float16, shape=(int(counts[view].sum()), safety_tokens)
            )
            for view in identity["views"]
        }
        # As plain arrays: slices of `np.memmap` are slow to make.
        self._views: dict[str, Halves] = {view: np.asarray(file) for view, file in self._files.items()}

    def write(self, view: str, document: int, values: Halves, skip: int = 0) -> None:
        """Stores [n, S] values of a document (its place in `keys`), after the first `skip` of its values."""
        offset = int(self._offset[view][document]) + skip
        self._views[view][offset : offset + len(values)] = values

    def finish(self) -> None:
        """Completes the folder and gives it its name."""
        views = list(self._views.values())
        for entry, spans in enumerate(zip(*self._index[3:].tolist(), *(s.tolist() for s in self._stops), strict=True)):
            starts, stops = spans[: len(views)], spans[len(views) :]
            self._index[2, entry] = _checksum(v[a:b] for v, a, b in zip(views, starts, stops, strict=True))
        np.save(self._partial / "index.npy", self._index)
        for file in self._files.values():
            file.flush()
        manifest = {
            "identity": self.identity,
            "documents": self._index.shape[1],
            "answer_tokens": len(self._views["full"]),
            "reached_tokens": len(self._views.get("answer_only", ())),
            "safety_tokens": views[0].shape[1],
            "seconds": round(time.monotonic() - self._started, 3),
            "index": _file_checksum(self._partial / "index.npy"),
        }
        (self._partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        try:
            self._partial.rename(self.target)
        except OSError:
            if not self.target.exists():
                raise
            shutil.rmtree(self._partial)  # another process finished the same cache first; both hold the same values


def log_probabilities(capture: Capture) -> torch.Tensor:
    """[N, S] log-probabilities under the full-vocabulary softmax, from a capture with a log-normaliser."""
    assert capture.log_normaliser is not None, "the request must ask for the log-normaliser"
    return capture.logits - capture.log_normaliser.unsqueeze(-1)


def _opened(path: Path) -> Any:
    """The array of a .npy file, memory-mapped: as a plain array, since slices of `np.memmap` are slow to make."""
    return np.asarray(np.load(path, mmap_mode="r"))


def _file_checksum(path: Path) -> str:
    return hashlib.blake2b(np.memmap(path, np.uint8, "r").data, digest_size=16).hexdigest()


def _checksum(parts: Iterable[Halves]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part.data, checksum)
    return checksum
