"""What lies in a folder of reference caches: stores, segments that were not finished, locks, and older formats."""

from __future__ import annotations

import math
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pact_plugins.errors import PactError
from pact_plugins.storage import files
from pact_plugins.storage.cache import PARTIAL, Store, segments_in
from pact_plugins.storage.identity import FORMAT
from pact_plugins.storage.segment import MANIFEST, Segment

_NAME = re.compile(rf"[0-9a-f]{{32}}({re.escape(PARTIAL)})?")
"""Of a store, and of a cache or a build of format 4."""

_DAY = 86_400


def stores(folder: Path) -> list[Path]:
    """Folders of stores, and of what formats before this one had in their place."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and _NAME.fullmatch(path.name))


def opened(path: Path) -> Store | None:
    """A store, whatever it was made for; None while nothing in it is finished.

    Raises:
        PactError: it is damaged, of an older format, or under another's name.
    """
    if path.suffix == PARTIAL or (path / MANIFEST).exists():
        raise PactError(
            expected=f"reference caches of format {FORMAT} in {path.parent}",
            got=f"one of a format before it, {path.name}",
            consequence="It is never read.",
            remedy="`pact cache clear` removes it; the next run computes its rows again.",
        )
    if not (segments := segments_in(path)):
        return None
    identity = Segment(segments[0]).manifest.identity
    if identity.name != path.name:
        raise PactError(
            expected=f"the reference cache that its name says in {path}",
            got=f"that of {identity.words(type(identity).model_fields)}",
            consequence="No run finds it there.",
            remedy=f"Rename it to {identity.name}, or remove it.",
        )
    return Store(path.parent, identity)


def unfinished(folder: Path) -> list[Path]:
    """Folders of segments that are being computed, or that the next run which needs their rows continues."""
    return sorted(path for store in stores(folder) for path in store.glob(f"*{PARTIAL}"))


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@dataclass(frozen=True)
class Chosen:
    """Which stores are to go; as they come, all of them.

    Attributes:
        older_than: those that no run has used for as many days.
        model: those of models whose fingerprint begins so.
        down_to: of these only as many, the longest unused first, as leave so many bytes of all stores.
    """

    older_than: float = 0
    model: str = ""
    down_to: int = 0

    def of(self, folder: Path) -> list[Path]:
        """The stores in a folder that are to go."""
        before = time.time() - self.older_than * _DAY if self.older_than else math.inf
        used = {path: path.stat().st_mtime for path in stores(folder)}
        sizes = {path: size_of(path) for path in used}
        rest, going = sum(sizes.values()), list[Path]()
        for path in sorted(used, key=used.__getitem__):
            matches = used[path] <= before and (not self.model or _model(path).startswith(self.model))
            if matches and (rest > self.down_to or not self.down_to):
                going.append(path)
                rest -= sizes[path]
        return going


def _model(store: Path) -> str:
    """Fingerprint of the model that a store of any format is of; empty where no manifest can be read."""
    for manifest in (store / MANIFEST, *store.glob(f"*/{MANIFEST}")):
        try:
            return str(files.read(manifest)["identity"]["model"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ""


def clear(folder: Path, chosen: Chosen) -> tuple[list[Path], list[Path]]:
    """Removes stores, with what is not finished in them, and locks; what was removed, and what a process is building.

    Raises:
        PactError: the system refuses to remove something.
    """
    removed: list[Path] = []
    busy: list[Path] = []
    with files.storing(folder):
        for path in chosen.of(folder):
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
