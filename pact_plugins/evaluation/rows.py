"""Rows of prompts as their authors publish them: CSV, JSONL, JSON, or a data set on the hub."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, NoReturn

from pact_plugins.errors import PactError, required

Row = dict[str, Any]

SUFFIXES = (".csv", ".jsonl", ".json")
"""What prompt files end in."""


def of_file(path: Path) -> list[Row]:
    """Rows of a CSV file with a header line, a JSONL file with an object a line, or a JSON file with a list of objects.

    Raises:
        PactError: there is no such file, its suffix is none of `SUFFIXES`, it is not UTF-8, a row is no JSON object, a
            CSV row has more or fewer cells than the header, or there is no row.
    """
    reader = {".csv": _csv, ".jsonl": _jsonl, ".json": _json}.get(path.suffix.lower())
    if reader is None:
        _refuse(path, f"a file that ends in {', '.join(SUFFIXES)}", f"`{path.suffix}`", "Convert the file.")
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become a part of the first column's name.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse(path, "a prompt file in UTF-8", str(error), "Save it as UTF-8: guessed letters would be other prompts.")
    except OSError as error:
        _refuse(path, "a prompt file that can be read", f"{type(error).__name__}: {error}", "Check the path.")
    rows = reader(path, text)
    if not rows:
        _refuse(path, "at least one prompt", "none", "A rate of nothing would read as 0%. Give another file.")
    return rows


def of_hub(name: str) -> list[Row]:
    """Rows of a data set on the hub: `owner/name`, `owner/name#config`, or `owner/name#config/split`.

    Raises:
        PactError: `datasets` is not installed, the data set cannot be reached, or it has several splits and none is
            named.
    """
    datasets = required("datasets", "trl", "prompts from the hub")
    source, _, part = name.partition("#")
    config, _, split = part.partition("/")
    try:
        loaded: Any = datasets.load_dataset(source, config or None, split=split or None)
    except Exception as error:  # the hub's client, fsspec and each file format raise their own
        raise PactError(
            expected=f"a prompt file, or the data set `{source}` on the hub",
            got=f"no such file, and {type(error).__name__}: {error}",
            consequence="There would be nothing to ask the model.",
            remedy="Check the name, the network and, for a gated data set, `hf auth login`; or download the file and "
            "give its path.",
        ) from error
    if isinstance(loaded, dict):
        splits: dict[str, Any] = loaded
        if len(splits) > 1:
            _refuse(name, "the name of one split", f"several: {', '.join(splits)}", f"Write `{source}#{config}/SPLIT`.")
        loaded = next(iter(splits.values()))
    return [dict(row) for row in loaded]


def _csv(path: Path, text: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        columns = list(reader.fieldnames or ())
        if len(set(columns)) < len(columns):
            _refuse(path, "a header that names each column once", ", ".join(columns), "Rename or remove the others.")
        for row in reader:
            # DictReader keeps what is over under the key None, and fills what is missing with None.
            if None in row or None in row.values():
                _refuse(
                    path,
                    f"{len(columns)} cells in the row that ends on line {reader.line_num}",
                    "more or fewer",
                    "Quote prompts that contain commas.",
                )
            rows.append(dict(row))
    except csv.Error as error:
        _refuse(path, "a well-formed CSV file", f"line {reader.line_num}: {error}", "Check its quotes.")
    return rows


def _jsonl(path: Path, text: str) -> list[Row]:
    # Not splitlines(): it also splits at the line separators that a JSON string may hold unescaped.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_object(path, f"line {number}", _parsed(path, f"line {number}", line)) for number, line in lines]


def _json(path: Path, text: str) -> list[Row]:
    content: Any = _parsed(path, "its content", text) if text.strip() else []
    if not isinstance(content, list):
        _refuse(path, "a list of objects", f"a {type(content).__name__}", "Write a list, or an object a line (.jsonl).")
    rows: list[Any] = content
    return [_object(path, f"row {number}", row) for number, row in enumerate(rows, 1)]


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and brackets as deep
        _refuse(path, "JSON", f"{where}: {error}", "Check its quotes and brackets; .jsonl has one object a line.")


def _object(path: Path, where: str, row: Any) -> Row:
    if not isinstance(row, dict):
        _refuse(path, "JSON objects", f"{where}: {type(row).__name__}", 'Write each row as `{"prompt": ...}`.')
    return row


def _refuse(source: Path | str, expected: str, got: str, remedy: str) -> NoReturn:
    raise PactError(
        expected=f"{expected} in {source}", got=got, consequence="The prompts could not be read.", remedy=remedy
    )
