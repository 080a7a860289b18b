"""One reference cache from several ranks: as one rank makes it, and whole or not there whatever happens to a rank."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from pact_plugins.storage import files
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.segment import MANIFEST
from tests.caches import IDENTITY, segment
from tests.distributed import processes
from tests.distributed.processes import ended, fork

pytestmark = pytest.mark.distributed

NAME = IDENTITY.name
run = partial(processes.run, begin=fork)


def values(folder: Path) -> dict[str, bytes]:
    """The bytes of a finished cache of one segment."""
    ReferenceCache(folder, IDENTITY).verify()
    return {f.name: f.read_bytes() for f in segment(folder).iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """What one process builds, and its forward passes."""
    folder = tmp_path_factory.mktemp("alone")
    ((built, passes),) = run("building:build", folder, ranks=1)
    assert built == [True, False]
    assert passes > 5
    return values(folder), passes


@pytest.mark.parametrize("disks", ["shared", "own"])
def test_ranks_share_the_work(disks: str, tmp_path: Path, alone: tuple[dict[str, bytes], int]) -> None:
    """Prevents: every rank computing everything, a sharded engine whose ranks call it unequally often, another cache
    than that of one process, and nodes without one."""
    passes = -(-alone[1] // 2)
    assert run("building:build", tmp_path, disks=disks) == [([True, False], passes)] * 2
    folders = [tmp_path / "0", tmp_path / "1"] if disks == "own" else [tmp_path]
    assert all(values(folder) == alone[0] for folder in folders)
    left = {p.name for folder in folders for p in folder.iterdir() if p.suffix != ".pt"}
    assert left == {NAME, f"{NAME}.lock"}


def test_a_node_without_the_cache_gets_it(tmp_path: Path, alone: tuple[dict[str, bytes], int]) -> None:
    """Prevents: a node that was not there for the first run holding up, or failing, the second."""
    (tmp_path / "0").mkdir()
    run("building:build", tmp_path / "0", ranks=1)
    assert run("building:build", tmp_path, disks="own") == [([True, False], -(-alone[1] // 2))] * 2
    assert values(tmp_path / "1") == alone[0]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_rank_stops_the_others_and_leaves_its_work(
    victim: int, tmp_path: Path, alone: tuple[dict[str, bytes], int]
) -> None:
    """Prevents: ranks that wait for ever for a dead one, half a cache under a whole one's name, and work done twice."""
    ranks = fork("building:build", tmp_path, event="dies", victim=victim)
    status = ended(ranks)
    assert status[victim][0] == 9
    assert status[1 - victim][0] == 1
    assert "RankError: Expected all 2 processes to come as far in computing this reference" in status[1 - victim][2]
    assert not [*(tmp_path / NAME).glob(f"*/{MANIFEST}")]
    # It dies in its third pass; by then the first of each rank is stored.
    found = run("building:build", tmp_path)
    assert [built for built, _ in found] == [[True, False]] * 2
    assert sum(passes for _, passes in found) <= 2 * -(-(alone[1] - 2) // 2)
    assert values(tmp_path) == alone[0]


def test_a_hanging_rank_is_named(tmp_path: Path) -> None:
    """Prevents: a run that stands still for ever, and nobody knows because of which process."""
    ranks = fork("building:build", tmp_path, event="hangs", timeout=5)
    ((status, _, errors),) = ended(ranks[:1])
    assert status == 1
    assert "within 5 s" in errors
    assert "Ranks 1 failed to pass monitoredBarrier" in errors
    # Its input is closed now, on which it was waiting: it finds the other gone.
    ((status, _, errors),) = ended(ranks[1:])
    assert status == 1
    assert "RankError" in errors


def test_a_failure_stops_every_rank(tmp_path: Path) -> None:
    """Prevents: an error in one rank, and the others waiting until the process group gives up."""
    statuses = ended(fork("building:build", tmp_path, event="nan"))
    assert [status for status, _, _ in statuses] == [1, 1], statuses
    assert (
        "RankError: Expected every process to succeed in computing this reference; got a failure of rank 1"
        in (statuses[0][2])
    )
    assert all("finite logits" in errors for _, _, errors in statuses)
    assert not [*(tmp_path / NAME).glob(f"*/{MANIFEST}")]


def test_another_run_is_waited_for(tmp_path: Path, alone: tuple[dict[str, bytes], int]) -> None:
    """Prevents: ranks that take the first one for lost while it waits for another run's lock."""
    with files.locked(tmp_path / NAME, "the other run"):
        ranks = fork("building:build", tmp_path, timeout=5)
        ranks[0].wait_for("another process is computing this reference")
        time.sleep(11)  # more than twice the time that ranks wait for each other
        assert [rank.returncode for rank in ranks] == [None, None]
    assert [status for status, _, _ in ended(ranks)] == [0, 0]
    assert values(tmp_path) == alone[0]
