"""Files that appear whole or not at all and notice changes, JSON and tensors; locks, and folders that are full."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pact_plugins.chat.fingerprints import digest
from pact_plugins.errors import PactError
from pact_plugins.model.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

MAX_BYTES = 2**28
"""Of a file that `read` accepts: the largest is the log of a long run."""

LOCK = ".lock"

_PATIENCE = 10.0
"""Seconds to try for a lock before the other ranks are told that it is still waited for."""


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` with a checksum, in one step; makes the folder."""
    write_text(path, json.dumps({**content, "checksum": digest(content)}, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, one a row, in one step; makes the folder."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step, so that no reader sees a part of it; makes the folder."""
    _write(path, text.encode())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file with a checksum and its own name, in one step; makes the folder."""
    whole = {name: values.contiguous() for name, values in tensors.items()}
    _write(path, save(whole, {"name": path.stem, "checksum": _checksum(whole)}))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without the content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads what `write_tensors` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, was written under another name, or its content does not match its checksum.
    """
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            # Copies: the file's own pages would change under a reader with the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if about.get("checksum") != _checksum(tensors):
        raise ValueError(f"{path} does not match its checksum")
    if about.get("name") != path.stem:
        raise ValueError(f"these are {about.get('name')}")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    parts = [(name, str(t.dtype), list(t.shape), _hash(t)) for name, t in sorted(tensors.items())]
    return digest(parts)


def _hash(tensor: Tensor) -> str:
    values = tensor.reshape(-1).view(torch.uint8) if tensor.numel() else tensor.new_zeros(0, dtype=torch.uint8)
    return hashlib.blake2b(values.numpy().data, digest_size=16).hexdigest()


def read(path: Path) -> dict[str, Any]:
    """Reads what `write` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or its content does not match its checksum.
    """
    with path.open("rb") as file:
        text = file.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes")
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.pop("checksum", None) == digest(content):
            return content
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    raise ValueError(f"{path} does not match its checksum")


@contextmanager
def storing(folder: Path, needed: int = 0) -> Generator[None]:
    """A block that writes `needed` bytes into `folder`.

    Raises:
        PactError: the system refuses to write them, or has no room for them.
    """
    there = next(parent for parent in (folder, *folder.parents) if os.path.isdir(parent))
    try:
        if needed > shutil.disk_usage(there).free:
            raise OSError("no space left")
        yield
    except OSError as error:
        free = shutil.disk_usage(there).free
        raise PactError(
            expected=f"to write {f'{needed:,} bytes' if needed else 'files'} into {folder}",
            got=f"{error.strerror or error}, with {free:,} bytes free",
            consequence="PACT has to keep there what it computes before the first step.",
            remedy="Make room or a folder that can be written to, or set `pact.cache_dir`; a reference that was "
            "being computed continues where it was.",
        ) from error


def lock_of(path: Path) -> Path:
    """The lock of what one process at a time makes; empty, and left there."""
    return path.with_name(path.name + LOCK)


@contextmanager
def locked(path: Path, what: str, ranks: Ranks = ALONE, *, holds: bool = True) -> Generator[None]:
    """A block, which makes `path`, that one run at a time is in; the system frees the lock of a process that ends.

    Args:
        path: what the block makes; the lock lies beside it and stays there.
        what: what the process in the block is doing, for those that wait.
        ranks: of this run; all of them enter the block together.
        holds: whether this rank is to hold the lock for those that share its disk.

    Raises:
        PactError: the folder cannot be written to.
    """
    lock = FileLock(lock_of(path))
    said = False

    def try_it() -> bool:
        nonlocal said
        try:
            lock.acquire(timeout=min(_PATIENCE, ranks.timeout / 2) if said else 0, poll_interval=0.5)
        except Timeout:
            if not said:
                logger.warning("PACT: another process is %s: waiting for it (%s).", what, lock.lock_file)
            said = True
        return lock.is_locked

    try:
        with storing(path.parent):
            if holds:
                path.parent.mkdir(parents=True, exist_ok=True)
            ranks.until_all(lambda: not holds or try_it(), what)
        yield
    finally:
        lock.release()


def first_on_disk(folder: Path, ranks: Ranks) -> bool:
    """Whether this is the first of the ranks that share the disk of `folder`, which may be on each node's own.

    Raises:
        PactError: the folder cannot be written to.
    """
    if ranks.size == 1:
        return True
    mark = folder / f"{uuid.uuid4().hex}.rank"
    what = "looking for who shares a disk"
    try:
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        seen = [(folder / other).exists() for other in ranks.exchange(mark.name, what)]
        return ranks.exchange(seen, what).index(seen) == ranks.rank
    finally:
        mark.unlink(missing_ok=True)
