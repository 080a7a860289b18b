"""`TensorFile`: one tensor in a safetensors file, written in pieces and read as a memory map.

The `safetensors` package writes whole tensors from memory and its NumPy reader copies them; a reference cache is larger
than memory. The format is simple enough to do both here: the header's length as a little-endian 64-bit integer, a JSON
header, the values. Name, type and shape are known beforehand, so the header is not interpreted on opening: it has to
equal the expected one byte for byte.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

_TYPES = {"F16": np.dtype("<f2"), "U64": np.dtype("<u8")}


@dataclass(frozen=True)
class TensorFile:
    """What a file has to be, whether or not it is there.

    Attributes:
        path: of the file.
        name: of its tensor.
        dtype: `F16` or `U64`, as safetensors calls them.
        shape: of the tensor.
    """

    path: Path
    name: str
    dtype: Literal["F16", "U64"]
    shape: tuple[int, ...]

    @cached_property
    def header(self) -> bytes:
        """All bytes before the values, which begin at a multiple of 8."""
        entry = {"dtype": self.dtype, "shape": self.shape, "data_offsets": [0, math.prod(self.shape) * self._width]}
        text = json.dumps({self.name: entry}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + math.prod(self.shape) * self._width

    @property
    def _width(self) -> int:
        return _TYPES[self.dtype].itemsize

    def allocate(self) -> None:
        """Makes the file, all values 0, with its place on the disk where the system can reserve it.

        Raises:
            OSError: there is such a file, or no room for it.
        """
        with self.path.open("xb") as file:
            file.write(self.header)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, self.size)
            else:
                file.truncate(self.size)

    def open(self) -> npt.NDArray[Any]:
        """The tensor, memory-mapped for reading: as a plain array, since slices of `np.memmap` are slow to make.

        Raises:
            OSError: there is no such file.
            ValueError: it is not this tensor, or of another size.
        """
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != self.size or file.read(len(self.header)) != self.header:
                raise ValueError(f"{self.path.name} is not the tensor {self.name} {self.dtype} {list(self.shape)}")
            return np.asarray(np.memmap(file, _TYPES[self.dtype], "r", len(self.header), self.shape))

    def write(self, file: BinaryIO, first: int, values: npt.NDArray[Any]) -> None:
        """Writes contiguous `values` from row `first` of the first dimension on.

        Plain writes: on a full disk they raise, where a store into a memory map would end the process.

        Args:
            file: this file, opened unbuffered as `r+b`.
            first: row that they begin at.
        """
        file.seek(len(self.header) + first * math.prod(self.shape[1:]) * self._width)
        rest = values.data.cast("B")
        while rest:
            rest = rest[file.write(rest) :]
