"""Everything that must be refused, in words: no stack trace of a library, and no run that trains on in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pact_plugins.errors import PactError
from tests.bad_inputs import SECTIONS, BadInput
from tests.bad_inputs.page import PAGE, entry

ALL = [pytest.param(bad, id=f"{section.title}: {bad.name}") for section in SECTIONS for bad in section.inputs]
SHOWN = PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("bad", ALL)
def test_refused_in_words(bad: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace, or silence, where something cannot be used; and a page that shows another message."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PactError) as caught:
        bad.act(tmp_path)
    error = caught.value
    assert re.search(bad.message, str(error), re.DOTALL), str(error)
    assert all(part.strip() for part in (error.expected, error.got, error.consequence, error.remedy))
    assert entry(bad, error, tmp_path) in SHOWN, "run `python -m tests.bad_inputs`"


def test_the_page_shows_them_all() -> None:
    """Prevents entries of the troubleshooting page that nothing makes any more, and too few of them."""
    assert len(ALL) >= 60
    expected = [line for s in SECTIONS for line in (f"## {s.title}", *(f"**{bad.name}**" for bad in s.inputs))]
    assert [line for line in SHOWN.splitlines() if line.startswith(("## ", "**"))] == expected
    for section in SECTIONS:
        assert len({bad.name for bad in section.inputs}) == len(section.inputs)
