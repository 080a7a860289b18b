"""One tensor in a safetensors file: the same bytes as the library's, whatever the system writes at once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pact_plugins.storage.tensors import TensorFile


@pytest.mark.parametrize("shape", [(5, 3), (0, 3), (7,), (2, 0)])
@pytest.mark.parametrize(("dtype", "kind"), [("F16", np.float16), ("U64", np.uint64)])
def test_the_library_reads_and_writes_the_same(
    tmp_path: Path, dtype: Literal["F16", "U64"], kind: Any, shape: tuple[int, ...]
) -> None:
    """Prevents: files that other tools refuse, and sound ones that are refused here."""
    file = TensorFile(tmp_path / "ours.safetensors", 'a "name"', dtype, shape)
    values = np.arange(np.prod(shape), dtype=kind).reshape(shape)
    file.allocate()
    assert not file.open().any()
    if values.size:
        with file.path.open("r+b", buffering=0) as handle:
            file.write(handle, 1, values[1:])
            file.write(handle, 0, values[:1])
    with safe_open(file.path, "np") as opened:
        found = opened.get_tensor('a "name"')
    assert found.dtype == kind
    assert (found == values).all()
    assert (file.open() == values).all()
    save_file({'a "name"': values}, tmp_path / "theirs.safetensors")
    assert (tmp_path / "theirs.safetensors").read_bytes() == file.path.read_bytes()
    assert file.size == file.path.stat().st_size


def test_parts_that_the_system_does_not_write_at_once(tmp_path: Path) -> None:
    """Prevents: the rest of a large write that is dropped in silence, as zeros in the middle of the reference."""

    class Slow(io.BytesIO):
        def write(self, part: Any) -> int:
            return super().write(part[:3])

    file, values, handle = TensorFile(tmp_path / "a", "a", "F16", (5, 3)), np.arange(15, dtype=np.float16), Slow()
    file.write(handle, 0, values.reshape(5, 3))
    assert handle.getvalue()[len(file.header) :] == values.tobytes()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """Prevents: a file of someone else that is emptied because it bears the name."""
    (tmp_path / "a").write_text("kept")
    with pytest.raises(FileExistsError):
        TensorFile(tmp_path / "a", "a", "F16", (5, 3)).allocate()
    assert (tmp_path / "a").read_text() == "kept"
