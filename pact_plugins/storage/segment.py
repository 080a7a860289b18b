"""`Segment`: the values of some rows in a store of reference values; written once, in one step, and never changed.

A segment is a folder::

    manifest.json              identity of the store, sizes, checksums of the index and of the manifest itself
    index.safetensors          [F, D] sorted by key: both halves of the key, checksum of the values, offset in each view
    full.safetensors           [T, S] float16 log-probabilities of the reference with its full context
    answer_only.safetensors    [R, S] the same without the prompt; only if the objective's gate needs it
    harm.safetensors           [A, 1] float16 probability that an answer's prompt asks for harm; alone, in its own store

D counts the rows (distinct documents), T their answer tokens, R those that the gate can reach, A their answers. A row's
values end where the next one's begin. Log-probabilities rather than logits: both objectives need exactly these or are
indifferent, and raw logits lose precision at float16.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from pact_plugins.chat.answers import Ints
from pact_plugins.errors import PactError
from pact_plugins.storage import files
from pact_plugins.storage.identity import FORMAT, Identity
from pact_plugins.storage.tensors import TensorFile

MANIFEST, INDEX = "manifest.json", "index"

Halves = npt.NDArray[np.float16]
Words = npt.NDArray[np.uint64]


class Manifest(BaseModel):
    """What a segment says of itself.

    Attributes:
        identity: of its store.
        documents: D, its rows.
        values: rows of each view: T, R or A.
        width: S, the safety tokens; 1 for harm.
        index: checksum of the index.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    identity: Identity
    documents: NonNegativeInt
    values: dict[str, NonNegativeInt]
    width: NonNegativeInt
    index: str


class Segment:
    """A segment opened for reading; index and values stay memory-mapped.

    Args:
        folder: made by `CacheWriter`.
        identity: what it must have been made for; None opens any of this format.

    Attributes:
        keys: [2, D] halves of the rows' keys, in ascending order.
        checksums: [D] of their values.
        views: [n, S] values by name.

    Raises:
        PactError: the folder is damaged, or was made for something else.
    """

    def __init__(self, folder: Path, identity: Identity | None = None) -> None:
        self.folder = folder
        try:
            self.manifest = Manifest.model_validate(files.read(folder / MANIFEST))
        except (OSError, ValueError) as error:
            raise self.damaged(f"{type(error).__name__}: {error}") from error
        found = self.manifest.identity
        identity = identity or found.model_copy(update={"format": FORMAT})
        if differing := identity.differences(found):
            raise PactError(
                expected=identity.words(differing),
                got=f"{found.words(differing)} in {folder}",
                consequence="The run would be held to another model's reference.",
                remedy="Remove that folder, or set `pact.cache_dir`; the next run computes its rows afresh.",
            )
        if tuple(self.manifest.values) != found.views:
            raise self.damaged(f"the views {list(self.manifest.values)}")
        self._files = segment_files(folder, self.manifest.documents, self.manifest.values, self.manifest.width)
        try:
            arrays = {name: file.open() for name, file in self._files.items()}
            index: Words = arrays.pop(INDEX)
            if file_checksum(self._files[INDEX].path) != self.manifest.index:
                raise ValueError("the index does not match its checksum")
        except (OSError, ValueError) as error:
            raise self.damaged(f"{type(error).__name__}: {error}") from error
        self.views: dict[str, Halves] = arrays
        # The rows of the index are contiguous, so a binary search touches few of its pages.
        self.keys, self.checksums = index[:2], index[2]
        self._offsets = dict(zip(self.views, index[3:], strict=True))

    def __len__(self) -> int:
        return self.manifest.documents

    def find(self, key: bytes) -> int | None:
        """The entry of a row, whose values match their checksum; None if it is not here."""
        high, low = (np.uint64(int.from_bytes(half, "big")) for half in (key[:8], key[8:]))
        at = int(np.searchsorted(self.keys[0], high))
        while at < len(self) and self.keys[0, at] == high:
            if self.keys[1, at] == low:
                self.check(at)
                return at
            at += 1
        return None

    def entries(self, keys: Words) -> Ints:
        """[n] entries of rows by their keys [2, n], -1 where one is not here; reads no values."""
        found = np.full(keys.shape[1], -1)
        at, rest = np.searchsorted(self.keys[0], keys[0]), np.arange(keys.shape[1])
        while len(rest := rest[at[rest] < len(self)]):
            rest = rest[self.keys[0, at[rest]] == keys[0, rest]]
            here = self.keys[1, at[rest]] == keys[1, rest]
            found[rest[here]] = at[rest[here]]
            rest = rest[~here]
            at[rest] += 1
        return found

    def read(self, view: str, entry: int, count: int | None = None) -> Halves:
        """The values of a row in a view, which must be `count` if that is known."""
        offsets, values = self._offsets[view], self.views[view]
        stop = int(offsets[entry + 1]) if entry + 1 < len(offsets) else len(values)
        part = values[int(offsets[entry]) : stop]
        if count is not None and len(part) != count:
            raise self.damaged(f"document {self._key(entry)} has {len(part)} values in {view}, not {count}")
        return part

    def counts(self, view: str) -> Ints:
        """[D] values of each row in a view."""
        return np.diff(self._offsets[view].astype(np.int64), append=len(self.views[view]))

    def check(self, entry: int) -> None:
        """Compares the values of a row with their checksum.

        Raises:
            PactError: they were changed.
        """
        if checksum(self.read(view, entry) for view in self.views) != self.checksums[entry]:
            raise self.damaged(f"the values of document {self._key(entry)} do not match their checksum")

    def verify(self) -> None:
        """Reads every value and compares it with its checksum.

        Raises:
            PactError: a value was changed, or is not finite.
        """
        for entry in range(len(self)):
            self.check(entry)
            if not all(np.isfinite(self.read(view, entry)).all() for view in self.views):
                raise self.damaged(f"the values of document {self._key(entry)} are not finite")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return (self.folder / MANIFEST).stat().st_size + sum(file.size for file in self._files.values())

    def _key(self, entry: int) -> str:
        return "".join(f"{int(half):016x}" for half in self.keys[:, entry])

    def damaged(self, what: str) -> PactError:
        """The error for a segment that is not as it was written."""
        return PactError(
            expected=f"an intact reference cache of format {FORMAT} in {self.folder}",
            got=what,
            consequence="The run would be held to a wrong reference.",
            remedy=f"Remove {self.folder}; the next run computes its rows again.",
        )


def halves_of(keys: Iterable[bytes]) -> Words:
    """[2, n] both halves of keys, as an index has them."""
    return np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2).T.astype(np.uint64)


def segment_files(folder: Path, documents: int, values: Mapping[str, int], width: int) -> dict[str, TensorFile]:
    """The index and the views of a segment, by name; `values`: rows of each view."""
    index = TensorFile(folder / f"{INDEX}.safetensors", INDEX, "U64", (3 + len(values), documents))
    views = {v: TensorFile(folder / f"{v}.safetensors", v, "F16", (rows, width)) for v, rows in values.items()}
    return {INDEX: index, **views}


def file_checksum(path: Path) -> str:
    """32 hexadecimal digits for all bytes of a file."""
    return hashlib.blake2b(np.memmap(path, np.uint8, "r").data, digest_size=16).hexdigest()


def checksum(parts: Iterable[Halves]) -> int:
    """CRC-32 of the bytes of contiguous arrays, one after the other."""
    found = 0
    for part in parts:
        found = zlib.crc32(part.data, found)
    return found
