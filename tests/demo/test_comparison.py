"""The demo from end to end, with few steps and few prompts."""

import json
from pathlib import Path

import pytest

from pact_plugins.demo import comparison, report, world
from pact_plugins.errors import PactError

pytest.importorskip("trl")


@pytest.mark.demo
def test_report_of_a_short_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a demo whose report lacks a run, a rate or an answer."""
    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("held_out_harmful", "held_out_look_alikes", "task_test_rows"):
        prompts = getattr(world, name)()[:4]
        monkeypatch.setattr(world, name, lambda prompts=prompts: prompts)
    comparison.run(tmp_path / "out", steps=3)
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [run["name"] for run in data["runs"]] == ["aligned", *comparison.METHODS]
    assert [run["objective"] for run in data["runs"]] == [None, None, "paper", "confidence", "confidence"]
    assert data["runs"][0]["refusal_rate"] == 1
    assert all(0 <= run[rate] <= 1 for run in data["runs"] for rate in report.RATES)
    assert all((run["train_seconds"] > 0) == (run["name"] != "aligned") for run in data["runs"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert world.held_out_harmful()[0] in page


def test_a_report_that_could_not_be_written_stops_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents minutes of training before a missing package is noticed."""
    monkeypatch.setattr(report, "find_spec", lambda _name: None)
    with pytest.raises(PactError, match=r"pact-plugins\[report\]"):
        comparison.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_answers_are_escaped(tmp_path: Path) -> None:
    """Prevents a model's answer from running in the reader's browser."""
    runs = [{"name": "aligned", "train_seconds": 0, **dict.fromkeys(report.RATES, 0.5)}]
    histories = {"aligned": [{"step": 1, "loss": 1.0, "pact/kl": 0.1}]}
    report.write_html(tmp_path / "r.html", runs, histories, [report.Sample("?", {"aligned": "<script>alert(1)"})])
    page = (tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
