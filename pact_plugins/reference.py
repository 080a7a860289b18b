"""`ReferenceCache`: what the model said before its first step, on disk, found again by content.

The reference is a pure function of a training sequence, so it is computed once, before the first step, and looked up
during every epoch. A cache is a folder::

    manifest.json      identity (model, tokenizer, tokens, format of the chat, data), sizes, checksum of the index
    index.npy          one entry per document, sorted by key: key, offset, count, checksum of its values
    full.npy           [T, S] float16 log-probabilities of the reference with its full context
    answer_only.npy    [T, S] the same without the prompt; only if the objective's gate needs it

T counts the answer tokens of all distinct documents. Log-probabilities rather than logits: both objectives need exactly
these or are indifferent, and raw logits lose precision at float16.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pact_plugins.answers import AnswerTokens, Document, Ints
from pact_plugins.chat_format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest
from pact_plugins.forward import batches_by_length, evaluating, pad, progress
from pact_plugins.subset_head import Capture, Request, SubsetHead

FORMAT = 1
Halves = npt.NDArray[np.float16]

_INDEX = np.dtype([("high", "<u8"), ("low", "<u8"), ("offset", "<i8"), ("count", "<i8"), ("checksum", "<u4")])


@dataclass(frozen=True)
class Reference:
    """Reference log-probabilities of the answer tokens of a batch; `answer_only` only if the cache holds that view."""

    full: Halves
    answer_only: Halves | None


class ReferenceCache:
    """A cache opened for reading; the values stay memory-mapped.

    Args:
        folder: a folder made by `build`.
        identity: what the cache must have been made for, field by field; None opens any.

    Raises:
        PactError: the folder is damaged, or was made for something else.
    """

    def __init__(self, folder: Path, identity: dict[str, Any] | None) -> None:
        self.folder = folder
        try:
            self.manifest = json.loads((folder / "manifest.json").read_text())
            raw_index = (folder / "index.npy").read_bytes()
            views = {v: np.load(folder / f"{v}.npy", mmap_mode="r") for v in self.manifest["identity"]["views"]}
            self._index = np.load(folder / "index.npy", mmap_mode="r")
            # A copy in one piece: a binary search in a field of the entries would first copy it, every time.
            self._high = np.ascontiguousarray(self._index["high"])
            found = dict(self.manifest["identity"])
            shape = (self.manifest["answer_tokens"], self.manifest["safety_tokens"])
            sound = self.manifest["index"] == hashlib.blake2b(raw_index, digest_size=16).hexdigest()
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        identity = found if identity is None else identity
        differing = [k for k in {**identity, **found} if identity.get(k) != found.get(k)]
        if differing:
            raise PactError(
                expected="; ".join(f"{k} = {identity.get(k)}" for k in differing),
                got="; ".join(f"{k} = {found.get(k)}" for k in differing) + f" in {folder}",
                consequence="The run would be held to another model's or other data's reference.",
                remedy="Remove that folder, or set `pact.cache_dir`; the next run builds a fresh cache.",
            )
        if not sound or any(view.shape != shape or view.dtype != np.float16 for view in views.values()):
            raise self._damaged("the index or the size of a file does not match the manifest")
        self._full: Halves = views["full"]
        self._answer_only: Halves | None = views.get("answer_only")

    def look_up(self, documents: Sequence[Document], counts: Ints) -> Reference:
        """The reference of every answer token of `documents`, which have `counts` answer tokens each.

        Raises:
            PactError: a document is not in the cache, or its values are damaged.
        """
        spans = [self._span(document, int(count)) for document, count in zip(documents, counts, strict=True)]
        full = [self._full[a:b] for a, b in spans]
        empty = self._full[:0]
        answer_only = None
        if self._answer_only is not None:
            answer_only = np.concatenate([empty, *(self._answer_only[a:b] for a, b in spans)])
        return Reference(np.concatenate([empty, *full]), answer_only)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def verify(self) -> None:
        """Reads every value and compares it with its checksum.

        Raises:
            PactError: a value was changed.
        """
        for entry in self._index:
            self._intact(entry)

    def _span(self, document: Document, count: int) -> tuple[int, int]:
        high, low = _halves(document.key)
        at = int(np.searchsorted(self._high, high))
        while at < len(self._high) and self._high[at] == high:
            entry = self._index[at]
            if entry["low"] == low:
                start, stop = self._intact(entry)
                if stop - start != count:
                    raise self._damaged(f"document {document.key.hex()} has {stop - start} answer tokens, not {count}")
                return start, stop
            at += 1
        raise PactError(
            expected=f"every training sequence among the {len(self._index):,} of the reference cache {self.folder}",
            got=f"one of {len(document.input_ids)} tokens that is not: {document.input_ids[:16].tolist()} ...",
            consequence="Its answers would train without PACT.",
            remedy="The batch differs from the data set as it was before the first step: does something truncate, "
            "augment or rewrite rows while training? Switch that off, or report the trainer's settings.",
        )

    def _intact(self, entry: Any) -> tuple[int, int]:
        """[start, stop) of an entry's values, which match their checksum."""
        start, stop = int(entry["offset"]), int(entry["offset"] + entry["count"])
        if _checksum(self._full, self._answer_only, start, stop) != entry["checksum"]:
            key = f"{int(entry['high']):016x}{int(entry['low']):016x}"
            raise self._damaged(f"the values of document {key} do not match their checksum")
        return start, stop

    def _damaged(self, what: str) -> PactError:
        return PactError(
            expected=f"an intact reference cache in {self.folder}",
            got=what,
            consequence="The run would be held to a wrong reference.",
            remedy=f"Remove {self.folder}; the next run builds it again.",
        )


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

    Call it in the autocast context of the trainer's own forward passes. Duplicates are computed once. The folder
    appears under its name only when it is whole.

    Args:
        identity: goes into the manifest; its `views` say what to compute.

    Raises:
        PactError: the model gives logits that are not finite.
    """
    started = time.monotonic()
    distinct = list({d.key: d for d in documents}.values())
    tokens = [AnswerTokens.of([d], chat) for d in distinct]
    counts = np.asarray([len(t) for t in tokens], np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    partial = target.with_name(f"{target.name}.partial-{time.time_ns()}")
    partial.mkdir(parents=True)
    shape = (int(offsets[-1]), len(head.ids))
    arrays = {
        view: np.lib.format.open_memmap(partial / f"{view}.npy", mode="w+", dtype=np.float16, shape=shape)
        for view in identity["views"]
    }
    work = [(view, *w) for view in arrays for w in _sequences(view, distinct, tokens, offsets, chat)]
    batches = batches_by_length([len(ids) for _, ids, _, _ in work])
    with evaluating(head.model):
        for batch in progress(batches, "PACT: computing the reference", len(batches), show_progress):
            logs = _log_probabilities(head, [work[i][1] for i in batch], [work[i][2] for i in batch])
            for i, values in zip(batch, logs, strict=True):
                view, _, columns, offset = work[i]
                arrays[view][offset : offset + len(columns)] = values
    full, answer_only = arrays["full"], arrays.get("answer_only")
    index = np.zeros(len(distinct), _INDEX)
    for entry, document, start, stop in zip(index, distinct, offsets, offsets[1:], strict=False):
        checksum = _checksum(full, answer_only, int(start), int(stop))
        entry["high"], entry["low"] = _halves(document.key)
        entry["offset"], entry["count"], entry["checksum"] = start, stop - start, checksum
    np.save(partial / "index.npy", np.sort(index, order=["high", "low"]))
    for array in arrays.values():
        array.flush()
    manifest = {
        "identity": identity,
        "documents": len(distinct),
        "answer_tokens": shape[0],
        "safety_tokens": shape[1],
        "seconds": round(time.monotonic() - started, 3),
        "index": hashlib.blake2b((partial / "index.npy").read_bytes(), digest_size=16).hexdigest(),
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    try:
        partial.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(partial)  # another process finished the same cache first; both hold the same values


def _sequences(
    view: str, documents: Sequence[Document], tokens: Sequence[AnswerTokens], offsets: Ints, chat: ChatFormat
) -> list[tuple[Ints, Ints, int]]:
    """(ids to run, columns whose next token is an answer token, offset of the first value) per forward sequence."""
    sequences: list[tuple[Ints, Ints, int]] = []
    for document, t, offset in zip(documents, tokens, offsets, strict=False):
        if view == "full":
            last = int(t.column[-1]) - document.start
            sequences.append((document.input_ids[: last + 1], t.column - document.start, int(offset)))
            continue
        header = np.asarray(chat.require_header("build the reference without the prompt"), np.int64)
        for answer in range(int(t.answer[-1]) + 1):
            own = np.flatnonzero(t.answer == answer)
            ids = np.concatenate([header, t.label[own][:-1]])
            columns = np.arange(len(own), dtype=np.int64) + len(header) - 1
            sequences.append((ids, columns, int(offset) + int(own[0])))
    return sequences


def _log_probabilities(head: SubsetHead, sequences: list[Ints], columns: list[Ints]) -> list[Halves]:
    device = next(head.model.parameters()).device
    ids, mask = pad(sequences, device)
    flat = np.concatenate([row * ids.shape[1] + c for row, c in enumerate(columns)])
    positions = torch.from_numpy(flat).to(device)
    request = Request(positions, ids.reshape(-1)[positions], normalise=True)
    with head.watch(request) as captures:
        # The decoder alone: the head's full-vocabulary logits would be thrown away.
        head.base.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
    values = log_probabilities(head.one(captures))
    if not bool(torch.isfinite(values).all()):
        raise PactError(
            expected="finite logits from the model before its first step",
            got="NaN or infinity",
            consequence="The reference would be meaningless.",
            remedy="Check the weights and the precision of the model; bfloat16 is safer than float16.",
        )
    half = values.clamp(min=float(np.finfo(np.float16).min)).half().cpu().numpy()
    return list(np.split(half, np.cumsum([len(c) for c in columns])[:-1]))


def log_probabilities(capture: Capture) -> torch.Tensor:
    """[N, S] log-probabilities under the full-vocabulary softmax, from a capture with a log-normaliser."""
    assert capture.log_normaliser is not None, "the request must ask for the log-normaliser"
    return capture.logits - capture.log_normaliser.unsqueeze(-1)


def _halves(key: bytes) -> tuple[np.uint64, np.uint64]:
    return np.uint64(int.from_bytes(key[:8], "big")), np.uint64(int.from_bytes(key[8:], "big"))


def _checksum(full: Halves, answer_only: Halves | None, start: int, stop: int) -> int:
    checksum = zlib.crc32(full[start:stop].tobytes())
    return checksum if answer_only is None else zlib.crc32(answer_only[start:stop].tobytes(), checksum)
