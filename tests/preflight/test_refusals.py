"""What a run refuses, everything that looks at it before it begins refuses too, in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pact_plugins.errors import PactError
from pact_plugins.preflight.audit import audit
from pact_plugins.preflight.estimate import estimate
from pact_plugins.preflight.guards import guards
from tests.bad_inputs import SECTIONS
from tests.bad_inputs.case import Begun

BEGUN = [
    pytest.param(bad.act, id=f"{section.title}: {bad.name}")
    for section in SECTIONS
    for bad in section.inputs
    if isinstance(bad.act, Begun)
]


@pytest.mark.parametrize("begun", BEGUN)
def test_refused_alike(begun: Begun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: figures of a run that could not begin, given by a copy of its preparation that has drifted."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PactError) as of_run:
        begun(tmp_path)
    for look in (estimate, audit, guards):
        with pytest.raises(PactError) as caught:
            begun.instead(tmp_path, look)
        assert caught.value.words == of_run.value.words


def test_all_kinds_are_walked() -> None:
    """Prevents: a walk of nothing."""
    kinds = {str(param.id).partition(":")[0] for param in BEGUN}
    assert kinds == {"Safety tokens", "Models", "Training data", "Trainers"}
    assert len(BEGUN) >= 50
