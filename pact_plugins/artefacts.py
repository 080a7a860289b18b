"""JSON files that appear whole or not at all, and notice when their content was changed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pact_plugins.fingerprints import digest


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` with a checksum, in one step; makes the folder."""
    write_text(path, json.dumps({**content, "checksum": digest(content)}, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines, one a row, in one step; makes the folder."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step, so that no reader sees a part of it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Reads what `write` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such file, or its content does not match its checksum.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.pop("checksum", None) != digest(content):
        raise ValueError(f"{path} does not match its checksum")
    return content
