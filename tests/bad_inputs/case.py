"""What a bad input is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class BadInput:
    """Something that must be refused.

    Attributes:
        name: what is wrong, for people; the heading of its entry in `docs/errors.md`.
        act: does it, in an empty folder of its own; must raise a `PactError`.
        message: a regular expression that the error's text has to match: its family, with the key or file at fault.
    """

    name: str
    act: Callable[[Path], Any]
    message: str


@dataclass(frozen=True)
class Section:
    """Bad inputs of one kind."""

    title: str
    inputs: Sequence[BadInput]


def written(content: str | bytes, name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads a file that holds `content`."""

    def act(folder: Path) -> Any:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read(path)

    return act


def given(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Callable[[Path], Any]:
    """Calls a function that needs no folder."""
    call = functools.partial(function, *arguments, **settings)
    return lambda _folder: call()
