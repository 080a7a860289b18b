"""The reference cache under real faults: killed builders, two at once, full disks, folders that cannot be written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pact_plugins.errors import PactError
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage import files
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.tensors import TensorFile
from tests import tiny
from tests.caches import IDENTITY, IDS, made, segment
from tests.faults import build
from tests.forked import Forked
from tests.rows import documents, few

pytestmark = pytest.mark.faults

NAME = IDENTITY.name
LIMIT = 120
"""Seconds that a process may take; far more than it needs."""


def start(folder: Path, wait_in: int = 0, *more: str) -> Forked:
    """A builder, which waits in one of its forward passes."""
    return Forked(build.main, str(folder), str(wait_in), *more)


def ended(process: Forked) -> list[str]:
    """What a process printed, which waits no more and ends well."""
    out, error = process.communicate(LIMIT)
    assert process.returncode == 0, error
    return out.split()


def values(folder: Path) -> dict[str, bytes]:
    """The bytes of a finished cache of one segment."""
    ReferenceCache(folder, IDENTITY).verify()
    return {f.name: f.read_bytes() for f in segment(folder).iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """Values of a build that nothing disturbed, and its forward passes."""
    folder = tmp_path_factory.mktemp("whole")
    *passes, last = ended(start(folder))
    assert last == "built"
    assert len(passes) > 5
    assert set(values(folder)) == {"manifest.json", "index.safetensors", "full.safetensors", "answer_only.safetensors"}
    return values(folder), len(passes)


def test_a_killed_build_continues(tmp_path: Path, whole: tuple[dict[str, bytes], int]) -> None:
    """Prevents: hours of forward passes lost to a kill; and a reference put together from what was left of them."""
    stored, passes = 0, whole[1]
    for _ in range(2):
        process = start(tmp_path, 4)
        # By then two batches are stored: each of them while the next but one is being computed, at the latest.
        process.wait_for("pass", 4)
        process.kill()
        process.communicate(LIMIT)
        assert process.returncode == -9
        stored += 2
        assert [p.suffix for p in (tmp_path / NAME).iterdir()] == [".partial"]
    continued = ended(start(tmp_path))
    assert continued == ["pass"] * (passes - stored) + ["built"]
    assert values(tmp_path) == whole[0]


def test_two_at_once(tmp_path: Path, whole: tuple[dict[str, bytes], int]) -> None:
    """Prevents: two runs on one machine that compute the same, or write into each other's files."""
    first = start(tmp_path, 1)
    first.wait_for("pass")
    second = start(tmp_path)
    second.wait_for("another process is computing this reference")
    assert ended(first) == ["pass"] * whole[1] + ["built"]
    assert ended(second) == ["found"]
    assert values(tmp_path) == whole[0]


def test_the_one_that_waits_continues_a_killed_build(tmp_path: Path, whole: tuple[dict[str, bytes], int]) -> None:
    """Prevents: a lock that outlives its process, on which every later run would wait for ever."""
    first = start(tmp_path, 4)
    first.wait_for("pass", 4)
    second = start(tmp_path)
    second.wait_for("another process is computing this reference")
    first.kill()
    first.communicate(LIMIT)
    assert ended(second) == ["pass"] * (whole[1] - 2) + ["built"]
    assert values(tmp_path) == whole[0]


def test_a_killed_addition_continues(tmp_path: Path) -> None:
    """Prevents: rows that were there being lost with those that were added, or the added ones computed twice."""
    for name in ("undisturbed", "killed"):
        assert ended(start(tmp_path / name, 0, "3"))[-1] == "built"
    undisturbed, killed = ended(start(tmp_path / "undisturbed")), tmp_path / "killed"
    before = segment(killed)
    kept = {file.name: file.read_bytes() for file in before.iterdir()}
    process = start(killed, 3)
    process.wait_for("pass", 3)
    process.kill()
    process.communicate(LIMIT)
    # By then one batch is stored.
    assert ended(start(killed)) == undisturbed[1:]
    assert {file.name: file.read_bytes() for file in before.iterdir()} == kept
    one, other = (ReferenceCache(tmp_path / name, IDENTITY) for name in ("undisturbed", "killed"))
    assert [len(part) for part in one.stores[0].segments] == [len(part) for part in other.stores[0].segments] == [5, 3]
    keys = [d.key for d in documents(few(8))]
    assert one.fingerprint(keys) == other.fingerprint(keys)
    other.verify()


def test_two_data_sets_at_once(tmp_path: Path) -> None:
    """Prevents: rows of two runs that both compute, or a run that opens before its own rows are there."""
    first = start(tmp_path, 1, "5")
    first.wait_for("pass")
    second = start(tmp_path, 0, "8")
    second.wait_for("another process is computing this reference")
    assert ended(first)[-1] == "built"
    assert ended(second)[-1] == "built"
    assert [len(one) for one in ReferenceCache(tmp_path, IDENTITY).stores[0].segments] == [5, 3]


def test_a_limit_on_files(tmp_path: Path, whole: tuple[dict[str, bytes], int]) -> None:
    """Prevents: a process that dies of a signal, or leaves half a cache, where files may not be as large."""
    process = start(tmp_path, 0, "8", "1000")
    _, error = process.communicate(LIMIT)
    assert process.returncode == 1
    assert "PactError: Expected to write" in error
    assert "File too large" in error
    assert not [*(tmp_path / NAME).iterdir()]
    assert ended(start(tmp_path))[-1] == "built"
    assert values(tmp_path) == whole[0]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs privileges")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_at_the_start(small_disk: Path) -> None:
    """Prevents: the first forward passes being spent on a cache that has no room; an error without figures."""
    (small_disk / "other").write_bytes(bytes(64 * 1024))
    with pytest.raises(PactError, match=r"write [\d,]+ bytes .* no space left, with 0 bytes free"):
        made(small_disk / "c", SubsetHead(tiny.llama(), IDS), few(8))
    assert [p.name for p in small_disk.rglob("*") if p.is_file() and p.suffix != ".lock"] == ["other"]


def test_a_disk_that_fills_up(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: SIGBUS in the middle of the build where the system cannot reserve room, or its work being lost."""
    monkeypatch.delattr(os, "posix_fallocate")
    head = SubsetHead(tiny.llama(), IDS)
    passes: list[int] = []

    def fill(*_: object) -> None:
        passes.append(1)
        if len(passes) == 1:
            with pytest.raises(OSError, match="No space left"):
                (small_disk / "other").write_bytes(bytes(2**20))

    hook = head.base.get_decoder().register_forward_hook(fill)
    with pytest.raises(PactError, match="No space left on device, with 0 bytes free"):
        made(small_disk / "c", head, few(8))
    assert not ReferenceCache(small_disk / "c", IDENTITY).stores[0].segments
    (small_disk / "other").unlink()
    hook.remove()
    made(small_disk / "c", head, few(8)).verify()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Prevents: a bare stack trace where the cache's folder belongs to someone else, or is no folder."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    (tmp_path / "file").write_text("")
    head = SubsetHead(tiny.llama(), IDS)
    # Nothing is closed to root.
    for parent in (tmp_path / "file", *([closed] if os.geteuid() else [])):
        with pytest.raises(PactError, match=r"Permission denied|Not a directory|File exists"):
            made(parent / "c", head, few(8))


def test_a_read_only_file_system(small_disk: Path) -> None:
    """Prevents: a finished cache that is refused because nothing can be written beside it."""
    head = SubsetHead(tiny.llama(), IDS)
    made(small_disk / "c", head, few(8))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ReferenceCache(small_disk / "c", IDENTITY).verify()
    with pytest.raises(PactError, match="Read-only file system"):
        made(small_disk / "d", head, few(8))
    with pytest.raises(PactError, match="Read-only file system"), files.storing(small_disk):
        files.write(small_disk / "tokens.json", {})


def test_room_is_reserved(tmp_path: Path) -> None:
    """Prevents: a sparse file, whose values find no room after hours of computing."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot reserve room")
    file = TensorFile(tmp_path / "t.safetensors", "t", "F16", (2**16, 8))
    file.allocate()
    assert file.path.stat().st_blocks * 512 >= file.size
