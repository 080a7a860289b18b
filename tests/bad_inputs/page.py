"""The troubleshooting page: what each bad input is answered with."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pact_plugins.errors import PactError
from tests.bad_inputs import SECTIONS, BadInput

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"

_HEAD = """# Errors, and what to do about them

What PACT cannot serve, it refuses with a message that says what it expected, what it got, what would have happened, and
what to do. This page shows the message of every bad input that the tests know: look for the words of yours. `FOLDER`
stands for a path, `FINGERPRINT` for 32 hexadecimal digits, and `…` for what another library said.

`python -m tests.bad_inputs` makes it from the table in `tests/bad_inputs`, which the tests run.
"""

_OWN_WORDS = "checksum|twice"
"""Of errors below ours whose text is our own too."""


def errors_page() -> str:
    """The page, made by doing everything that is wrong."""
    parts = [_HEAD]
    for section in SECTIONS:
        parts += [f"## {section.title}\n", *(_done(bad) for bad in section.inputs)]
    return "\n".join(parts)


def entry(bad: BadInput, error: PactError, folder: Path) -> str:
    """A bad input with the error that it was answered with; `folder` is where it was done."""
    expected, got, consequence, remedy = (
        _plain(text, folder) for text in (error.expected, error.got, error.consequence, error.remedy)
    )
    return f"**{bad.name}**\n\n> Expected {expected}; got {got}. {consequence} {remedy}\n"


def _done(bad: BadInput) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            bad.act(Path(folder))
        except PactError as error:
            return entry(bad, error, Path(folder))
    raise AssertionError(f"{bad.name} is not refused")


def _plain(text: str, folder: Path) -> str:
    """The same on every machine, and with every release of the libraries below."""
    if not re.search(_OWN_WORDS, text):
        text = re.sub(r"\b((?:\w+\.)*\w+(?:Error|Exception))( on \S+)?: .*", r"\1\2: …", text, flags=re.DOTALL)
        text = re.sub(r"(its content: )Exceeds the limit.*", r"\1…", text)  # Python's own words
    text = re.sub(r"\b[0-9a-f]{32}\b", "FINGERPRINT", text.replace(str(folder), "FOLDER"))
    return re.sub(r"\s+", " ", text).strip().replace("<", "&lt;")
