"""Everything that must be refused, in words: no stack trace of a library, and no run that trains on in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pact_plugins.errors import PactError
from tests.bad_inputs import SECTIONS, BadInput

ALL = [pytest.param(bad, id=f"{section.title}: {bad.name}") for section in SECTIONS for bad in section.inputs]


@pytest.mark.parametrize("bad", ALL)
def test_refused_in_words(bad: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace, or silence, where somebody gave something that cannot be used."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PactError) as caught:
        bad.act(tmp_path)
    error = caught.value
    assert re.search(bad.message, str(error), re.DOTALL), str(error)
    assert all(part.strip() for part in (error.expected, error.got, error.consequence, error.remedy))


def test_each_has_a_name_of_its_own() -> None:
    """Prevents two entries of the troubleshooting page under one heading."""
    for section in SECTIONS:
        names = [bad.name for bad in section.inputs]
        assert len(set(names)) == len(names)
    assert len(ALL) >= 60
