"""What lies in a folder of reference caches: finished ones, builds that were not finished, and locks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pact_plugins.storage import files
from pact_plugins.storage.cache import MANIFEST, differences
from pact_plugins.storage.writer import PARTIAL


def finished(folder: Path) -> list[Path]:
    """Folders of caches that have their name."""
    # A build that was interrupted at its very end has a manifest too.
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if path.parent.suffix != PARTIAL)


def unfinished(folder: Path) -> list[Path]:
    """Folders of builds that are going on, or that the next run of the same kind continues."""
    return sorted(folder.glob(f"*{PARTIAL}"))


def nearest(folder: Path, identity: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """The cache of the same model, but for something else, that differs in the fewest entries; and these entries.

    Reads nothing but manifests, of any format. Those that cannot be read are passed over.
    """
    found: list[tuple[Path, list[str]]] = []
    for path in finished(folder):
        try:
            other = files.read(path / MANIFEST).get("identity")
        except (OSError, ValueError):
            continue
        if isinstance(other, dict) and other.get("model") == identity["model"]:
            found.append((path, differences(identity, other)))
    return min((one for one in found if one[1]), key=lambda one: len(one[1]), default=None)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def clear(folder: Path) -> tuple[list[Path], list[Path]]:
    """Removes caches, unfinished builds and locks; what was removed, and what stays since a process is building it.

    Raises:
        PactError: the system refuses to remove something.
    """
    removed: list[Path] = []
    busy: list[Path] = []
    with files.storing(folder):
        for path in [*finished(folder), *unfinished(folder)]:
            lock = FileLock(files.lock_of(path.with_name(path.name.removesuffix(PARTIAL))))
            try:
                with lock.acquire(timeout=0):
                    shutil.rmtree(path)
                    removed.append(path)
            except Timeout:
                busy.append(path)
        for file in folder.glob(f"*{files.LOCK}"):
            try:
                with FileLock(file).acquire(timeout=0):
                    file.unlink()
            except Timeout:
                continue  # of what is busy
    return removed, busy
