"""The report from files to page: what it shows, what it escapes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from pact_plugins.cli import main
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.preparation import evidence_of, prepare
from pact_plugins.run.report import write as writing
from pact_plugins.run.report.write import make_report
from pact_plugins.run.token_profile import measure_profile, save_profiles
from pact_plugins.run.trainer import Start
from pact_plugins.storage import files
from tests import tiny
from tests.rows import documents, few
from tests.run.report.evaluations import ANSWER, COMPLIANCE, REFUSAL, write

HOSTILE = "</svg><script>alert(1)</script> `x` | y\n# **h** [a](https://evil.example) $x$ <img src=x onerror=alert(2)>"


def leave_run(folder: Path) -> Path:
    """A run's files, as training leaves them."""
    config = PactConfig(safety_tokens=[40, 41, 42], anchors=0, cache_dir=folder / "cache")
    preparation = prepare(Start(tiny.llama(), tiny.tokenizer(), documents(few()), config, show_progress=False))
    evidence_of(preparation, versions={"torch": "x"}, training={"model": "my/model", "adapter": True}).save(folder)
    log = [{"step": s, "loss": 1 / s, "pact/kl": 0.01 * s, "pact/gate": 0.5} for s in (1, 2, 3)]
    Evidence.save_history([*log, {"step": 3, "train_loss": float("nan")}], folder)
    save_profiles({"training answers": measure_profile(preparation.objective, preparation.sample)}, folder)
    return folder


def texts(folder: Path) -> tuple[str, str, dict]:
    found = [(folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "json")]

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    return found[0], found[1], json.loads(found[2], parse_constant=refuse)


def test_a_run_with_its_evaluation(tmp_path: Path) -> None:
    """Prevents a page that lacks the verdict, a rate, a plot, a token, an answer or a setting."""
    folder = leave_run(tmp_path)
    changed = [REFUSAL] * 50 + [COMPLIANCE] * 50
    write(folder / "pact_evaluation", [[REFUSAL] * 100, [ANSWER] * 100], [changed, [ANSWER] * 100])
    html, markdown, data = texts(make_report(folder))
    for text in (html, markdown):
        for words in (
            "did not hold",
            "50.0%",
            "harmful 50?",
            "Sure, here is how.",
            "confidence",
            "The course of training",
        ):
            assert words in text
    assert "40.4, 59.6" in html
    assert html.count("<svg") == html.count('role="img"') == 3
    assert html.index("harmful 50?") < html.index("harmful 0?")  # changed ones first
    assert data["verdicts"][0]["outcome"] == "did not hold"
    assert data["behaviour"]["changed"] == 50
    assert data["trainings"][0]["log"][-1]["train_loss"] is None
    assert data["trainings"][0]["about"]["settings"]["conflict"] == "damp"


def test_plots_stand_alone(tmp_path: Path) -> None:
    """Prevents ids that collide between plots, references into nowhere, and drawings that load or run something."""
    folder = leave_run(tmp_path)
    write(folder / "pact_evaluation", [[REFUSAL] * 9], [[COMPLIANCE] * 9])
    first = texts(make_report(folder))[0]
    drawings = re.findall(r"<svg.*?</svg>", first, flags=re.DOTALL)
    ids = re.findall(r'\bid="([^"]+)"', "".join(drawings))
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'(?:url\(|href=")#([\w-]+)', "".join(drawings))) <= set(ids)
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    assert not re.search(r"<(script|link|iframe|object|image)\b|\bon\w+=|@import", first)
    assert texts(make_report(folder))[0] == first


def test_plots_are_files_too(tmp_path: Path) -> None:
    """Prevents Markdown whose pictures are broken, and files that only draw inside the page."""
    folder = leave_run(tmp_path)
    write(folder / "pact_evaluation", [[REFUSAL] * 9], [[COMPLIANCE] * 9])
    report = make_report(folder)
    html, markdown, _ = texts(report)
    linked = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert sorted(linked) == sorted(p.name for p in report.glob("*.svg"))
    for name in linked:
        drawing = (report / name).read_text(encoding="utf-8")
        assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
        assert drawing in html


def test_without_an_evaluation(tmp_path: Path) -> None:
    """Prevents a rate that was not measured from being shown as 0%."""
    html, markdown, data = texts(make_report(leave_run(tmp_path)))
    command = f"pact eval --model my/model --adapter {tmp_path} --against my/model --out {tmp_path}/pact_evaluation"
    for text in (html, markdown):
        assert "not measured" in text
        assert command in text
    assert "Rates" not in html
    assert data["behaviour"] is None


def test_an_evaluation_alone(tmp_path: Path) -> None:
    """Prevents `pact report` from needing a run where only answers were judged."""
    evaluation = write(tmp_path / "evaluation", None, [[REFUSAL] * 5])
    result = CliRunner().invoke(main, ["report", str(evaluation)])
    assert result.exit_code == 0, result.output
    html, _, data = texts(evaluation / "pact_report")
    assert "100.0%" in html
    assert data["trainings"] == []
    assert data["verdicts"][0]["outcome"] == "not shown"


def test_hostile_answers_are_shown_not_run(tmp_path: Path) -> None:
    """Prevents an answer from running in the reader's browser, or from writing Markdown of its own."""
    evaluation = write(tmp_path, [[REFUSAL]], [[HOSTILE]])
    html, markdown, _ = texts(make_report(evaluation))
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    (row,) = [line for line in markdown.splitlines() if "alert(1)" in line]
    assert re.sub(r"\\.", "", row).count("|") == 4  # prompt, before, after
    assert not re.search(r"<(?!br>)", row)
    assert not re.search(r"(?<!\\)[`*\[\]]", row)
    assert "://" not in row


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Prevents an optional package from costing the report, or its plots from vanishing without a word."""
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == "matplotlib" else object())
    html, markdown, _ = texts(make_report(leave_run(tmp_path)))
    assert "<svg" not in html
    assert "matplotlib is not installed" in html
    assert "not measured" in markdown
    assert 'pip install "pact-plugins[report]"' in caplog.text


@pytest.mark.parametrize("damage", ["empty", "nothing", "rates", "answers", "missing", "history", "elsewhere"])
def test_bad_input(damage: str, tmp_path: Path) -> None:
    """Prevents a report of files that were changed, or of nothing."""
    folder, evaluation = tmp_path / "run", tmp_path / "run" / "pact_evaluation"
    if damage not in ("nothing", "empty"):
        leave_run(folder)
        write(evaluation, None, [[REFUSAL] * 5])
    if damage == "empty":
        folder.mkdir()
    elif damage == "rates":
        result = evaluation / "evaluation.json"
        result.write_text(result.read_text().replace('"count": 5', '"count": 4'))
    elif damage in ("answers", "missing"):
        rows = (evaluation / "verdicts.jsonl").read_text().splitlines()
        rows = rows[1:] if damage == "missing" else ["{", *rows[1:]]
        (evaluation / "verdicts.jsonl").write_text("\n".join(rows))
    elif damage == "history":
        (folder / "pact_history.json").write_text("{}")
    with pytest.raises(PactError, match=r"no such folder|neither|checksum|JSONDecodeError|4 of the 5"):
        make_report(folder, tmp_path / "none" if damage == "elsewhere" else None)
    assert not (folder / "pact_report").exists()


def test_another_models_evaluation_is_noticed(tmp_path: Path) -> None:
    """Prevents the rates of one model from standing silently beside the training of another."""
    write(leave_run(tmp_path) / "pact_evaluation", None, [[REFUSAL] * 5])
    assert "Same model?" in texts(make_report(tmp_path))[0]


def test_the_profile_of_an_untouched_model_is_its_references(tmp_path: Path) -> None:
    """Prevents positions, or model and reference, from being mixed up."""
    leave_run(tmp_path)
    found = files.read(tmp_path / "pact_profile.json")["training answers"]
    assert found["model"] == pytest.approx(found["reference"], rel=1e-2)
    assert max(found["kl"]) < 1e-4
    counts = found["tokens"]
    assert counts == sorted(counts, reverse=True)
