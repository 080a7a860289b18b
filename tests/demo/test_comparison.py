"""The demo from end to end, with few steps and few prompts."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from pact_plugins.demo import comparison, world
from pact_plugins.errors import PactError
from pact_plugins.run.report import write
from pact_plugins.run.verification import verify
from tests.brief import few_prompts

pytest.importorskip("trl")


@pytest.mark.demo
def test_report_of_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a demo whose report lacks a run, a rate or an answer."""
    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(comparison, "ROWS", 60)
    few_prompts(monkeypatch)
    for name in ("held_out_harmful", "held_out_look_alikes", "task_test_rows"):
        prompts = getattr(world, name)()[:4]
        monkeypatch.setattr(world, name, lambda prompts=prompts: prompts)
    for _ in range(2):  # the second finds the runs of the first
        comparison.run(tmp_path / "out", steps=3)
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [run["name"] for run in data["runs"]] == ["aligned", *comparison.METHODS]
    assert [run["objective"] for run in data["runs"]] == [None, None, "paper", "confidence", "confidence"]
    assert data["runs"][0]["refusal_rate"] == 1
    rates = ("refusal_rate", "affirmative_opening_rate", "incoherent_rate", "over_refusal_rate", "task_accuracy")
    assert all(0 <= run[rate] <= 1 for run in data["runs"] for rate in rates)
    assert all((run["train_seconds"] > 0) == (run["name"] != "aligned") for run in data["runs"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 2 + 3  # rates, course, and the positions of each run under PACT
    assert [v["model"] for v in data["verdicts"]] == [*comparison.METHODS]
    assert world.held_out_harmful()[0] in page
    assert verify(tmp_path / "out" / "default").holds
    drawing = (tmp_path / "out" / "rates.svg").read_text()
    assert all(name in drawing for name in comparison.LEAD.values())
    assert all(
        title in drawing for title in ("Harmful requests refused", "Harmless requests answered", "Tasks done right")
    )
    assert [s["model"] for s in data["summaries"]] == ["plain fine-tuning", "paper", "confidence", "pact: true"]
    assert data["summaries"][-1]["proof"] == "under PACT, steps 1 to 3 of 3, these weights"


@pytest.mark.parametrize(("lacking", "extra"), [(comparison, "all"), (write, "report")])
def test_what_is_missing_stops_first(
    lacking: ModuleType, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents minutes of training before a missing package is noticed, and one extra after the other."""
    monkeypatch.setattr(lacking, "find_spec", lambda _name: None)
    with pytest.raises(PactError, match=rf"pact-plugins\[{extra}\]"):
        comparison.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
