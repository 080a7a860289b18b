"""Everything that must be refused, in words: no stack trace of a library, and no run that trains on in silence."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from tests.bad_inputs import SECTIONS, BadInput
from tests.cli.test_command_line import COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
ALL = {f"{section.title}: {bad.name}": bad for section in SECTIONS for bad in section.inputs}
ROWS = [
    re.findall(r'"([^"]+)"', line.partition(" | ")[0])
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith('| "')
]
"""The words by which each row of the page is found."""


@cache
def answer(bad: BadInput) -> PactError:
    """The error that it is refused with."""
    here = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # where some of them leave files
        try:
            with pytest.raises(PactError) as caught:
                bad.act(Path(folder))
        finally:
            os.chdir(here)
    return caught.value.with_traceback(None)


@pytest.mark.parametrize("bad", ALL.values(), ids=ALL)
def test_refused_in_words(bad: BadInput) -> None:
    """Prevents a stack trace, or silence, where something cannot be used; and an error that blames something else."""
    error = answer(bad)
    assert re.search(bad.message, str(error), re.DOTALL), str(error)
    assert all(part.strip() for part in error.words.values())
    assert not re.search(r"<function|<bound method| object at 0x", str(error)), "a value that was not put in words"
    _check_advice(f"{error.expected} {error.consequence} {error.remedy}")


def _check_advice(text: str) -> None:
    """That the commands and keys which a message names are there."""
    for words in re.findall(r"`pact ([a-z][a-z -]*)", text):
        assert any(f"{words} ".startswith(f"{name} ") for name in COMMANDS), words
    for key in re.findall(r"`pact\.([a-z_]+)", text):
        assert key in PactConfig.model_fields, key


def test_the_page_leads_on_from_every_error() -> None:
    """Prevents a message that nobody finds on the page, or finds twice, and words on it that no message has."""
    assert len(ALL) >= 300
    messages = {name: str(answer(bad)) for name, bad in ALL.items()}
    found = {name: [row for row in ROWS if any(words in text for words in row)] for name, text in messages.items()}
    assert {name: rows for name, rows in found.items() if len(rows) != 1} == {}, "the rows of docs/errors.md"
    assert [words for row in ROWS for words in row if not any(words in text for text in messages.values())] == []
