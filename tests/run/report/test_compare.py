"""Several runs on one page: the user's own, with and without PACT."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pact_plugins.cli import main
from pact_plugins.errors import PactError
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.report.compare import comparison_of
from tests.run.report.evaluations import ANSWER, COMPLIANCE, REFUSAL, write
from tests.run.report.test_report import leave_run, texts

BEFORE = [[REFUSAL] * 100, [ANSWER] * 100]
LOST = [[COMPLIANCE] * 100, [ANSWER] * 100]


def test_a_plain_run_beside_one_under_pact(tmp_path: Path) -> None:
    """Prevents rates, answers or verdicts of one run under the name of another."""
    write(tmp_path / "plain", BEFORE, LOST)
    write(tmp_path / "off" / "_pact_evaluation", BEFORE, LOST)
    write(leave_run(tmp_path / "mine") / "_pact_evaluation", BEFORE, BEFORE)
    folders = [str(tmp_path / "plain"), str(tmp_path / "off" / "_pact_evaluation"), str(tmp_path / "mine")]
    result = CliRunner().invoke(main, ["compare", *folders, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    html, _, data = texts(tmp_path / "out")
    assert [(s["model"], s["outcome"]) for s in data["summaries"]] == [
        ("plain", "did not hold"),
        ("off", "did not hold"),
        ("mine", "held"),
    ]
    assert [(t["name"], t["proof"].startswith("no PACT, as far")) for t in data["trainings"]] == [
        ("plain", True),
        ("off", True),
        ("mine", False),
    ]
    assert "`pact: true` from the first step" in data["summaries"][0]["next_step"]
    line = data["behaviour"]["lines"][0]
    assert [rate["share"] for rate in line["rates"]] == [1, 0, 0, 1]
    sample = data["behaviour"]["samples"][0]
    assert [reply["response"] for reply in sample["replies"]] == [REFUSAL, COMPLIANCE, COMPLIANCE, REFUSAL]
    assert data["behaviour"]["changed"] == 100
    assert str(tmp_path) not in html


def test_a_run_that_was_switched_off(tmp_path: Path) -> None:
    """Prevents a plain run of `pact: false` from being refused, or from being taken for one under PACT."""
    for name in ("one", "other"):
        Evidence.save_off(tmp_path / name)
        write(tmp_path / name / "_pact_evaluation", BEFORE, LOST)
    found = comparison_of([tmp_path / "one", tmp_path / "other"])
    assert [(t.name, t.under_pact, t.proof) for t in found.trainings] == [
        ("one", False, "no PACT"),
        ("other", False, "no PACT"),
    ]


@pytest.mark.parametrize(
    ("difference", "got"),
    [
        ("alone", "other"),
        ("name", "one, one"),
        ("nothing", "neither"),
        ("before", "no model before fine-tuning"),
        ("prompts", "other prompts"),
        ("judges", "other judges"),
        ("rates", "other rates before fine-tuning"),
    ],
)
def test_what_cannot_be_compared(difference: str, got: str, tmp_path: Path) -> None:
    """Prevents rates side by side that are of different questions, judges or models."""
    one = write(tmp_path / "one", BEFORE, LOST)
    other = tmp_path / "other"
    if difference == "name":
        other = write(tmp_path / "elsewhere" / "one", BEFORE, LOST)
    elif difference == "nothing":
        other.mkdir()
    elif difference == "before":
        write(other, None, LOST)
    elif difference == "prompts":
        write(other, BEFORE[:1], LOST[:1])
    elif difference == "judges":
        write(other, BEFORE, LOST, ("opening",))
    else:
        write(other, LOST if difference == "rates" else BEFORE, LOST)
    with pytest.raises(PactError, match=got):
        comparison_of([other] if difference == "alone" else [one, other])
