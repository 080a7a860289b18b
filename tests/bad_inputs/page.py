"""The troubleshooting page: what each bad input is answered with."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pact_plugins.errors import PactError
from tests.bad_inputs import SECTIONS, BadInput

_HEAD = """# Errors, and what to do about them

Whatever PACT cannot serve, it refuses with a message that says what it expected, what it got, what would have happened,
and what to do. This page shows the message of every bad input that the tests know: look for the words of yours.
`FOLDER` stands for a path, `FINGERPRINT` for 32 hexadecimal digits, and `...` for what another library said.

It is made by `python -m docs.generate` from the table in `tests/bad_inputs`, which the tests run.
"""


def errors_page() -> str:
    """The page `docs/errors.md`, made by doing everything that is wrong."""
    parts = [_HEAD]
    for section in SECTIONS:
        parts.append(f"## {section.title}\n")
        parts += [f"**{bad.name}**\n\n{_quoted(bad)}\n" for bad in section.inputs]
    return "\n".join(parts)


def _quoted(bad: BadInput) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            bad.act(Path(folder))
        except PactError as error:
            expected, got = _plain(error.expected, folder), _plain(error.got, folder)
            consequence, remedy = _plain(error.consequence, folder), _plain(error.remedy, folder)
            return f"> Expected {expected}; got {got}. {consequence} {remedy}"
    raise AssertionError(f"{bad.name} is not refused")


def _plain(text: str, folder: str) -> str:
    """The same on every machine, and with every release of the libraries below."""
    text = re.sub(r"\b((?:\w+\.)*\w+(?:Error|Exception))( on \S+)?: .*", r"\1\2: ...", text, flags=re.DOTALL)
    text = re.sub(r"\b[0-9a-f]{32}\b", "FINGERPRINT", text.replace(folder, "FOLDER"))
    return re.sub(r"\s+", " ", text).replace("<", "&lt;")
