"""Builds that were interrupted: what the next one finds, trusts and computes again."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.errors import PactError
from pact_plugins.method import reference
from pact_plugins.method.reference import open_or_build
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage import cache, files, writer
from pact_plugins.storage.cache import ReferenceCache, Store
from pact_plugins.storage.tensors import TensorFile
from pact_plugins.storage.writer import SEGMENTS, CacheWriter, Place, compact
from tests import tiny
from tests.caches import FULL_ONLY, IDENTITY, IDS, but, made, segment
from tests.rows import CHAT, documents, few, flip_bit

ROWS = few(8)
STORED = 3
"""Batches that the interrupted build stores."""


class Passes:
    """Counts the forward passes of a head's model, and interrupts one of them."""

    def __init__(self, head: SubsetHead) -> None:
        self.number, self.last = 0, 10**9
        head.base.get_decoder().register_forward_hook(self)

    def __call__(self, *_: Any) -> None:
        self.number += 1
        if self.number == self.last:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "batches_by_length", partial(reference.batches_by_length, budget=60))


@pytest.fixture
def head() -> SubsetHead:
    return SubsetHead(tiny.llama(), IDS)


@pytest.fixture
def passes(head: SubsetHead) -> Passes:
    return Passes(head)


@pytest.fixture
def whole(head: SubsetHead, passes: Passes, tmp_path: Path) -> tuple[dict[str, bytes], int]:
    """The values of a build that nothing disturbed, and its forward passes."""
    made(tmp_path / "whole", head, ROWS)
    number, passes.number = passes.number, 0
    assert number > STORED + 3
    return values(tmp_path / "whole"), number


@pytest.fixture
def interrupted(head: SubsetHead, passes: Passes, whole: object, tmp_path: Path) -> Path:
    """The folder of stores of a build that was interrupted."""
    # A batch is stored after the next one was computed.
    passes.last = STORED + 2
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "c", head, ROWS)
    passes.number, passes.last = 0, 10**9
    return tmp_path / "c"


def values(folder: Path) -> dict[str, bytes]:
    """All bytes of the only segment."""
    return {file.name: file.read_bytes() for file in segment(folder).iterdir()}


def partial_of(folder: Path) -> Path:
    """The only build that is not finished."""
    (found,) = folder.glob("*/*.partial")
    return found


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def record_of(folder: Path) -> np.ndarray:
    (record,) = load_file(partial_of(folder) / "progress.safetensors").values()
    return record


def test_a_build_continues(
    head: SubsetHead, passes: Passes, whole: tuple[dict[str, bytes], int], interrupted: Path
) -> None:
    """Prevents: forward passes paid for twice, and files that tell how they came about."""
    assert np.count_nonzero(record_of(interrupted)[:-1]) == STORED
    made(interrupted, head, ROWS)
    assert passes.number == whole[1] - STORED
    assert values(interrupted) == whole[0]
    assert not [*interrupted.glob("*/*.partial")]


def test_the_order_of_the_data_does_not_matter(
    head: SubsetHead, passes: Passes, whole: tuple[dict[str, bytes], int], interrupted: Path
) -> None:
    """Prevents: a build that starts anew, or takes one document's values for another's, since the data was shuffled."""
    cache = made(interrupted, head, [*reversed(ROWS), ROWS[2]])
    assert passes.number == whole[1] - STORED
    assert values(interrupted) == whole[0]
    assert cache.stores[0].documents == len(ROWS)


def test_the_time_is_that_of_all_parts(head: SubsetHead, interrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a build of hours that reports the seconds of its last part."""
    before = int(record_of(interrupted)[-1]) / 1e6
    assert before > 0
    clock = count(step=10)
    monkeypatch.setattr("pact_plugins.storage.writer.time.monotonic", lambda: next(clock))
    _, computed = open_or_build(interrupted, IDENTITY, documents(ROWS), head, CHAT, show_progress=False)
    later = int((computed.seconds - before) / 10 + 0.5)
    assert later > 1
    assert computed.seconds == pytest.approx(before + 10 * later)


def test_the_progress_bar_begins_where_the_build_does(
    head: SubsetHead, interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a bar that promises hours which are over, or ends before its end."""
    shown: list[tuple[int, str, int, int]] = []

    def progress(items: Iterable[Any], what: str, total: int, show: bool, *, done: int) -> list[Any]:
        listed = list(items)
        shown.append((len(listed), what, total, done))
        return listed

    monkeypatch.setattr(reference, "progress", progress)
    made(interrupted, head, ROWS)
    made(interrupted.with_name("d"), head, ROWS)
    total = shown[1][0]
    assert shown[0] == (total - STORED, "PACT: computing the reference, continued", total, STORED)
    assert shown[1] == (total, "PACT: computing the reference", total, 0)


def _lose(name: str) -> Callable[[Path], None]:
    """What a power cut leaves of values that the system had not written yet."""

    def apply(folder: Path) -> None:
        content = (folder / f"{name}.safetensors").read_bytes()
        header = int.from_bytes(content[:8], "little") + 8
        (folder / f"{name}.safetensors").write_bytes(content[:header] + bytes(len(content) - header))

    return apply


def _flip(name: str, share: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        file = folder / f"{name}.safetensors"
        header = int.from_bytes(file.read_bytes()[:8], "little") + 8
        flip_bit(file, header + int((file.stat().st_size - header) * share))

    return apply


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (_lose("full"), STORED),
        (_lose("progress"), STORED),
        (_lose("answer_only"), 0),
        (_lose("index"), 0),
        (_flip("progress", 0), 1),
        (lambda folder: [_flip("full", i / 100)(folder) for i in range(100)], STORED),
    ],
    ids=["values", "record", "values not computed yet", "index", "a bit of the record", "bits of the values"],
)
def test_damage_is_computed_again(
    head: SubsetHead,
    passes: Passes,
    whole: tuple[dict[str, bytes], int],
    interrupted: Path,
    damage: Callable[[Path], Any],
    lost: int,
) -> None:
    """Prevents: a failing disk, or a power cut, that enters the reference, with a checksum that says it is intact."""
    damage(partial_of(interrupted))
    made(interrupted, head, ROWS)
    assert passes.number == whole[1] - STORED + lost
    assert values(interrupted) == whole[0]


@pytest.mark.parametrize("name", ["full", "answer_only", "index", "progress"])
@pytest.mark.parametrize("damage", ["gone", "cut", "longer", "header"])
def test_other_files_are_thrown_away(
    head: SubsetHead,
    passes: Passes,
    whole: tuple[dict[str, bytes], int],
    interrupted: Path,
    name: str,
    damage: str,
) -> None:
    """Prevents: a partial folder that nothing can be done with standing in the way for ever."""
    file = partial_of(interrupted) / f"{name}.safetensors"
    content = file.read_bytes()
    file.unlink()
    if damage != "gone":
        file.write_bytes({"cut": content[:-1], "longer": content + b"0", "header": b"0" + content[1:]}[damage])
    (partial_of(interrupted) / "left over").mkdir()
    made(interrupted, head, ROWS)
    assert passes.number == whole[1]
    assert values(interrupted) == whole[0]


@pytest.mark.parametrize("what", ["identity", "documents", "tokens", "batches"])
def test_other_work_is_left_alone(
    head: SubsetHead, passes: Passes, interrupted: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Prevents: values of another model, other data or other tokens under a new name."""
    identity, rows = IDENTITY, ROWS
    if what == "identity":
        identity = but(model="n")
    elif what == "documents":
        rows = few(7)
    elif what == "tokens":
        head.remove()
        head = SubsetHead(head.model, IDS[:-1])
    else:
        monkeypatch.setattr(reference, "batches_by_length", lambda lengths: [[i] for i in range(len(lengths))])
    made(interrupted, head, rows, identity).verify()
    continued, passes.number = passes.number, 0
    made(interrupted.with_name("d"), head, rows, identity)
    assert continued == passes.number
    one, other = (segment(folder, identity) for folder in (interrupted, interrupted.with_name("d")))
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()


@pytest.mark.parametrize("other", ["counts", "places"])
def test_other_work_of_the_same_size_is_thrown_away(tmp_path: Path, other: str) -> None:
    """Prevents: values of one document that are stored as another's, where all files are as large."""
    keys = [bytes([i]) * 16 for i in range(3)]
    places = [[Place("full", i, 0, 2)] for i in range(3)]
    how: dict[str, Any] = {"folder": tmp_path, "identity": FULL_ONLY, "keys": keys, "width": 4}
    with CacheWriter(**how, counts={"full": np.full(3, 2)}, batches=places) as writer:
        writer.store(1, [(places[1][0], np.ones((2, 4), np.float16))])
    with CacheWriter(**how, counts={"full": np.full(3, 2)}, batches=places) as writer:
        assert writer.to_do() == [0, 2]
    counts = np.asarray([1, 2, 3]) if other == "counts" else np.full(3, 2)
    changed = [[Place("full", i, 0, int(counts[i]))] for i in range(3)]
    changed = changed if other == "counts" else changed[::-1]
    with CacheWriter(**how, counts={"full": counts}, batches=changed) as writer:
        assert writer.to_do() == [0, 1, 2]


def test_only_what_is_whole_is_finished(
    head: SubsetHead, passes: Passes, whole: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    """Prevents: a batch that was left out, or changed on the disk during the build, becoming the reference."""
    target = tmp_path / "c"

    def damage(*_: Any) -> None:
        if passes.number == whole[1]:
            _lose("full")(partial_of(target))

    hook = head.base.get_decoder().register_forward_hook(damage)
    with pytest.raises(PactError, match="batches that were not stored or were changed since"):
        made(target, head, ROWS)
    hook.remove()
    assert not ReferenceCache(target, IDENTITY).stores[0].segments
    made(target, head, ROWS)
    assert values(target) == whole[0]


def test_an_interruption_at_the_end(
    head: SubsetHead,
    passes: Passes,
    whole: tuple[dict[str, bytes], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents: all values computed again because the last steps, which compute none, were interrupted."""
    for part, name in ((CacheWriter, "finish"), (files, "write"), (Path, "rename")):
        with monkeypatch.context() as patch:
            patch.setattr(part, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                made(tmp_path / "c", head, ROWS)
            assert not ReferenceCache(tmp_path / "c", IDENTITY).stores[0].segments
    made(tmp_path / "c", head, ROWS)
    assert passes.number == whole[1]
    assert values(tmp_path / "c") == whole[0]


def test_an_interruption_after_the_end(head: SubsetHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a whole cache that is refused, or counted as larger, for the record that is left in it."""
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda p, **k: interrupt() if "progress" in p.name else unlink(p, **k))
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "c", head, ROWS)
    cache = ReferenceCache(tmp_path / "c", IDENTITY)
    cache.verify()
    sizes = {file.name: file.stat().st_size for file in segment(tmp_path / "c").iterdir()}
    assert cache.size == sum(sizes.values()) - sizes["progress.safetensors"]


@pytest.mark.parametrize("writes", [0, 1, 4, 9, -1])
def test_a_disk_that_takes_no_more(
    head: SubsetHead,
    passes: Passes,
    whole: tuple[dict[str, bytes], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
) -> None:
    """Prevents: a bare stack trace, half a cache under its name, and work that is lost with it."""
    write, sizes = TensorFile.write, [0]

    def full(self: TensorFile, file: Any, first: int, part: Any) -> None:
        sizes.append(len(part))
        last = self.name == "index" if writes < 0 else len(sizes) > writes + 1
        if last:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, file, first, part)

    with monkeypatch.context() as patch:
        patch.setattr(TensorFile, "write", full)
        with pytest.raises(PactError, match=r"No space left on device, with [\d,]+ bytes free"):
            made(tmp_path / "c", head, ROWS)
    assert not ReferenceCache(tmp_path / "c", IDENTITY).stores[0].segments
    stored, passes.number = np.count_nonzero(record_of(tmp_path / "c")[:-1]), 0
    assert (stored > 0) == (writes not in (0, 1))
    made(tmp_path / "c", head, ROWS)
    assert passes.number == whole[1] - stored
    assert values(tmp_path / "c") == whole[0]


def grown(folder: Path, head: SubsetHead) -> Store:
    """A store of one segment too many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "compact", lambda _: None)
        for segments in range(SEGMENTS + 1):
            cache = made(folder, head, few(3 + segments))
    assert len(cache.stores[0].segments) == SEGMENTS + 1
    return cache.stores[0]


def found(cache: ReferenceCache) -> list[bytes]:
    rows = [AnswerTokens.of([d], CHAT) for d in documents(few(3 + SEGMENTS))]
    seen = [cache.look_up(row) for row in rows]
    return [view.tobytes() for one in seen for view in (one.full, one.answer_only) if view is not None]


def test_many_segments_become_one(head: SubsetHead, tmp_path: Path) -> None:
    """Prevents: lookups that slow down with each change of the data, and values that change when they are moved."""
    grown(tmp_path, head)
    apart = ReferenceCache(tmp_path, IDENTITY)
    values, keys = found(apart), [d.key for d in documents(few(3 + SEGMENTS))]
    cache = made(tmp_path, head, few(4 + SEGMENTS))
    assert [len(one) for one in cache.stores[0].segments] == [4 + SEGMENTS]
    assert [*cache.folder.iterdir()] == [cache.stores[0].segments[0].folder]
    assert found(cache) == found(apart) == values, "also of those which a run still has open"
    cache.verify()
    assert cache.fingerprint(keys) == apart.fingerprint(keys)


@pytest.mark.parametrize("part", ["finish", "discard"])
def test_a_merger_that_is_cut_off(head: SubsetHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Prevents: rows lost, or a store that can never be merged, since the merger was interrupted."""
    store = grown(tmp_path, head)
    values = found(ReferenceCache(tmp_path, IDENTITY))
    with monkeypatch.context() as patch:
        patch.setattr(*((CacheWriter, "finish") if part == "finish" else (writer, "discard")), interrupt)
        with pytest.raises(KeyboardInterrupt):
            compact(store)
    again = ReferenceCache(tmp_path, IDENTITY)
    assert found(again) == values
    compact(again.stores[0])
    last = ReferenceCache(tmp_path, IDENTITY)
    assert [len(one) for one in last.stores[0].segments] == [3 + SEGMENTS]
    assert found(last) == values
    assert not [*store.folder.glob("*.partial")]


def test_damage_and_full_disks_leave_segments_apart(
    head: SubsetHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prevents: a damaged row that is copied with a checksum which says it is sound; a run stopped for want of room."""
    store = grown(tmp_path, head)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        compact(store)
    assert "no space left" in caplog.text
    flip_bit(store.segments[0].folder / "full.safetensors", -1)
    compact(store)
    assert "do not match their checksum" in caplog.text
    assert len(ReferenceCache(tmp_path, IDENTITY).stores[0].segments) == SEGMENTS + 1
    assert not [*store.folder.glob("*.partial")]


def test_a_store_that_is_merged_while_it_is_opened(
    head: SubsetHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a run that another one's tidying up stops."""
    store, segments_in = grown(tmp_path, head), cache.segments_in
    listed = iter([segments_in(store.folder)])
    compact(store)
    monkeypatch.setattr(cache, "segments_in", lambda folder: next(listed, None) or segments_in(folder))
    assert ReferenceCache(tmp_path, IDENTITY).stores[0].documents == 3 + SEGMENTS
