"""JSON artefacts and the folders that they go into: whole or not at all, bounded, one writer at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from filelock import FileLock

from pact_plugins.errors import PactError
from pact_plugins.storage import files


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a full disk that costs the file of the run before, or litters the folder."""
    path = tmp_path / "a.json"
    files.write(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, {"a": 2})
    assert files.read(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a": ' * 10**5, '{"a": 1}', "", "\xff", "1" * 10**5])
def test_other_content_is_a_value_error(tmp_path: Path, text: str) -> None:
    """Prevents: a RecursionError, or any other error that no caller expects."""
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"."):
        files.read(path)


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a file of gigabytes that is read into memory before anything is checked."""
    path = tmp_path / "a.json"
    files.write(path, {"a": "b" * 100})
    monkeypatch.setattr(files, "MAX_BYTES", path.stat().st_size)
    files.read(path)
    monkeypatch.setattr(files, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match="is larger than"):
        files.read(path)


def test_what_is_needed_and_free_is_said(tmp_path: Path) -> None:
    """Prevents: starting on what has no room; and an error that does not say how much is missing."""
    with pytest.raises(PactError) as caught, files.storing(tmp_path / "not" / "there", 2**60):
        pytest.fail("began")
    assert f"{2**60:,} bytes" in caught.value.expected
    assert str(tmp_path) in caught.value.expected
    assert "bytes free" in caught.value.got
    with files.storing(tmp_path, 1):
        pass


def test_other_errors_pass() -> None:
    """Prevents: a bug that is reported as a full disk."""
    with pytest.raises(KeyError), files.storing(Path()):
        raise KeyError


def test_the_second_waits_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a run that seems to hang, or two that do the same work."""
    path, order = tmp_path / "new" / "a.json", list[str]()

    def second() -> None:
        with files.locked(path, "writing"):
            order.append("second")

    waits: Any = Thread(target=second)
    acquire = FileLock.acquire

    def noting(self: FileLock, *, timeout: float, **how: Any) -> Any:
        if timeout and "waits" not in order:  # the first try does not wait
            order.append("waits")
        return acquire(self, timeout=timeout, **how)

    with files.locked(path, "writing"):
        monkeypatch.setattr(FileLock, "acquire", noting)
        waits.start()
        while "waits" not in order:
            waits.join(0.01)
            assert waits.is_alive()
        order.append("first")
    waits.join(60)
    assert order == ["waits", "first", "second"]
    assert "another process is writing: waiting for it" in caplog.text
    assert str(path) in caplog.text
