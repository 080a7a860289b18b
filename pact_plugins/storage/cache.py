"""`ReferenceCache`: what the model said before its first step, on disk, found again by content.

The reference is a pure function of a training sequence, so it is computed once, before the first step, and looked up
during every epoch. A cache is a folder::

    manifest.json              identity (model, tokenizer, tokens, chat, data), sizes, checksums of the index and itself
    index.safetensors          [F, D] sorted by key: both halves of the key, checksum of the values, offset in each view
    full.safetensors           [T, S] float16 log-probabilities of the reference with its full context
    answer_only.safetensors    [R, S] the same without the prompt; only if the objective's gate needs it
    harm.safetensors           [A, 1] float16 probability that an answer's prompt asks for harm; only for `damp`

D counts the distinct documents, T their answer tokens, R those that the gate can reach, A their answers. A document's
values end where the next one's begin. Log-probabilities rather than logits: both objectives need exactly these or are
indifferent, and raw logits lose precision at float16.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from pact_plugins.chat.answers import AnswerTokens, Document, Ints
from pact_plugins.errors import MissingReferenceError, PactError
from pact_plugins.model.subset_head import Capture
from pact_plugins.storage import files
from pact_plugins.storage.tensors import TensorFile

FORMAT = 4
"""Of a cache's files and of what computes them: part of its identity, so that another format is another cache."""

MANIFEST, INDEX = "manifest.json", "index"

_VIEWS = [["full", *gated, *damped] for gated in ([], ["answer_only"]) for damped in ([], ["harm"])]

Halves = npt.NDArray[np.float16]
Words = npt.NDArray[np.uint64]


class _Manifest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    identity: dict[str, Any]
    documents: NonNegativeInt
    answer_tokens: NonNegativeInt
    reached_tokens: NonNegativeInt
    answers: NonNegativeInt
    safety_tokens: NonNegativeInt
    seconds: NonNegativeFloat
    index: str


@dataclass(frozen=True)
class Reference:
    """The reference of the N answer tokens of a batch, in A answers.

    Attributes:
        full: [N, S] log-probabilities with the full context.
        answer_only: [N, S] without the prompt, and beyond the gate's reach a copy of `full`, which the gate then leaves
            as it is; None if the cache does not hold that view.
        harm: [A] probability that the prompt of an answer asks for harm (`harm_probe`); None likewise.
    """

    full: Halves
    answer_only: Halves | None
    harm: Halves | None


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
            self.manifest = files.read(folder / MANIFEST)
            manifest = _Manifest.model_validate(self.manifest)
        except (OSError, ValueError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        found = manifest.identity
        identity = {**found, "format": FORMAT} if identity is None else identity
        if differing := differences(identity, found):
            raise PactError(
                expected="; ".join(f"{k} = {identity.get(k)}" for k in differing),
                got="; ".join(f"{k} = {found.get(k)}" for k in differing) + f" in {folder}",
                consequence="The run would be held to another model's or other data's reference.",
                remedy="Remove that folder, or set `pact.cache_dir`; the next run builds a fresh cache.",
            )
        views, reach = found.get("views"), found.get("reach")
        if views not in _VIEWS or type(reach) is not int:
            raise self._damaged(f"the views {views} and the reach {reach}")
        rows = {"full": manifest.answer_tokens, "answer_only": manifest.reached_tokens, "harm": manifest.answers}
        self._files = cache_files(folder, views, manifest.documents, rows, manifest.safety_tokens)
        try:
            arrays = {name: file.open() for name, file in self._files.items()}
            index: Words = arrays.pop(INDEX)
            if file_checksum(self._files[INDEX].path) != manifest.index:
                raise ValueError("the index does not match its checksum")
        except (OSError, ValueError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        self._views: dict[str, Halves] = arrays
        self._reach = reach
        # The rows of the index are contiguous, so a binary search touches few of its pages.
        self._high, self._low, self._checksums = index[:3]
        self._offsets = dict(zip(self._views, index[3:], strict=True))

    def look_up(self, tokens: AnswerTokens) -> Reference:
        """The reference of every answer token of a batch.

        Raises:
            PactError: a document is not in the cache, or its values are damaged.
        """
        found = [self._find(document) for document in tokens.documents]
        full = self._read("full", found, tokens, tokens.counts)
        harm = None
        if "harm" in self._views:
            first = np.cumsum(tokens.counts) - tokens.counts
            answers = np.diff(tokens.answer[first], append=len(tokens.prompt_end))
            harm = self._read("harm", found, tokens, answers)[:, 0]
        if "answer_only" not in self._views:
            return Reference(full, None, harm)
        reached = tokens.position < self._reach
        before = np.concatenate([[0], np.cumsum(reached)])
        ends = np.cumsum(tokens.counts)
        counts = before[ends] - before[ends - tokens.counts]
        answer_only = full.copy()
        answer_only[reached] = self._read("answer_only", found, tokens, counts)
        return Reference(full, answer_only, harm)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return (self.folder / MANIFEST).stat().st_size + sum(file.size for file in self._files.values())

    def verify(self) -> None:
        """Reads every value and compares it with its checksum.

        Raises:
            PactError: a value was changed, or is not finite.
        """
        for entry in range(len(self._high)):
            self._check(entry)
            if not all(np.isfinite(self._values(view, entry)).all() for view in self._views):
                raise self._damaged(f"the values of document {self._key(entry)} are not finite")

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
        if checksum(self._values(view, entry) for view in self._views) != self._checksums[entry]:
            raise self._damaged(f"the values of document {self._key(entry)} do not match their checksum")

    def _key(self, entry: int) -> str:
        return f"{int(self._high[entry]):016x}{int(self._low[entry]):016x}"

    def _damaged(self, what: str) -> PactError:
        return PactError(
            expected=f"an intact reference cache of format {FORMAT} in {self.folder}",
            got=what,
            consequence="The run would be held to a wrong reference.",
            remedy=f"Remove {self.folder}; the next run builds it again.",
        )


def differences(identity: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The entries in which two identities differ."""
    return [k for k in {**identity, **other} if identity.get(k) != other.get(k)]


def log_probabilities(capture: Capture) -> torch.Tensor:
    """[N, S] log-probabilities under the full-vocabulary softmax, from a capture with a log-normaliser."""
    assert capture.log_normaliser is not None, "the request must ask for the log-normaliser"
    return capture.logits - capture.log_normaliser.unsqueeze(-1)


def cache_files(
    folder: Path, views: Sequence[str], documents: int, rows: Mapping[str, int], safety_tokens: int
) -> dict[str, TensorFile]:
    """The index and the views of a cache, by name; `rows`: of each view."""
    index = TensorFile(folder / f"{INDEX}.safetensors", INDEX, "U64", (3 + len(views), documents))
    widths = {v: 1 if v == "harm" else safety_tokens for v in views}
    stored = {v: TensorFile(folder / f"{v}.safetensors", v, "F16", (rows[v], widths[v])) for v in views}
    return {INDEX: index, **stored}


def file_checksum(path: Path) -> str:
    """32 hexadecimal digits for all bytes of a file."""
    return hashlib.blake2b(np.memmap(path, np.uint8, "r").data, digest_size=16).hexdigest()


def checksum(parts: Iterable[Halves]) -> int:
    """CRC-32 of the bytes of contiguous arrays, one after the other."""
    found = 0
    for part in parts:
        found = zlib.crc32(part.data, found)
    return found
