"""The report from files to page: what it shows, what it escapes, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from pact_plugins.cli import main
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.model.weights import in_files
from pact_plugins.run.evidence import FINAL, Evidence, Part
from pact_plugins.run.preparation import evidence_of, prepare
from pact_plugins.run.report import write as writing
from pact_plugins.run.report.files import contents_of
from pact_plugins.run.report.plots import plots
from pact_plugins.run.report.write import Written, make_report, write_report
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


def texts(report: Path | Written) -> tuple[str, str, dict]:
    folder = report.folder if isinstance(report, Written) else report
    found = [(folder / f"report.{kind}").read_text(encoding="utf-8") for kind in ("html", "md", "json")]

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    return found[0], found[1], json.loads(found[2], parse_constant=refuse)


def test_a_run_with_its_evaluation(tmp_path: Path) -> None:
    """Prevents a page that lacks the verdict, a rate, a plot, a token, an answer or a setting."""
    folder = leave_run(tmp_path)
    changed = [REFUSAL] * 50 + [COMPLIANCE] * 50
    write(folder / "_pact_evaluation", [[REFUSAL] * 100, [ANSWER] * 100], [changed, [ANSWER] * 100])
    html, markdown, data = texts(written := make_report(folder))
    for text in (html, markdown):
        for words in (
            "It no longer refuses harmful requests as it did",
            "did not hold",
            "50.0%",
            "confidence",
            "The course of training",
            "_pact_evaluation/report.html",
        ):
            assert words in text
        assert "harmful 50?" not in text
        assert COMPLIANCE not in text
    assert COMPLIANCE not in json.dumps(data)
    whole = (folder / "_pact_evaluation" / "report.html").read_text()
    assert COMPLIANCE in whole
    assert written.line.startswith("Did not hold. It no longer refuses harmful requests as it did")
    assert written.line.endswith("_pact_evaluation/report.html")
    assert "40.4, 59.6" in html
    assert html.count("<svg") == html.count('role="img"') == 3
    assert whole.index("harmful 50?") < whole.index("harmful 0?")  # changed ones first
    assert data["verdicts"][0]["outcome"] == "did not hold"
    assert data["behaviour"]["changed"] == 50
    assert data["trainings"][0]["log"][-1]["train_loss"] is None
    assert data["trainings"][0]["about"]["settings"]["conflict"] == "damp"


def test_plots_stand_alone(tmp_path: Path) -> None:
    """Prevents ids that collide between plots, references into nowhere, and drawings that load or run something."""
    folder = leave_run(tmp_path)
    write(folder / "_pact_evaluation", [[REFUSAL] * 9], [[COMPLIANCE] * 9])
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
    write(folder / "_pact_evaluation", [[REFUSAL] * 9], [[COMPLIANCE] * 9])
    report = make_report(folder).folder
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
    command = "pact eval --model my/model --adapter . --against my/model --out _pact_evaluation"
    for text in (html, markdown):
        assert "not measured" in text
        assert command in text
        assert str(tmp_path) not in text
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
    folder, evaluation = tmp_path / "run", tmp_path / "run" / "_pact_evaluation"
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
    write(leave_run(tmp_path) / "_pact_evaluation", None, [[REFUSAL] * 5])
    assert "Whose weights answered cannot be told: the run did not end." in texts(make_report(tmp_path))[0]
    ended = replace(Evidence.read(tmp_path), weights={FINAL: ["its own"]})
    ended.save(tmp_path)
    assert "whose weights cannot be compared with this run" in texts(make_report(tmp_path))[0]


def test_the_profile_of_an_untouched_model_is_its_references(tmp_path: Path) -> None:
    """Prevents positions, or model and reference, from being mixed up."""
    leave_run(tmp_path)
    found = files.read(tmp_path / "pact_profile.json")["training answers"]
    assert found["model"] == pytest.approx(found["reference"], rel=1e-2)
    assert max(found["kl"]) < 1e-4
    counts = found["tokens"]
    assert counts == sorted(counts, reverse=True)


def _badge(html: str, answer: str) -> set[str]:
    return set(re.findall(rf'<span class="badge ([a-z]*)">[^<]*</span>\s*<div class="answer">{answer}', html))


def test_badges_say_what_is_good(tmp_path: Path) -> None:
    """Prevents a refusal of a harmless request in the colour of a good answer, and the other way round."""
    write(tmp_path, [[REFUSAL], [ANSWER]], [[COMPLIANCE], [REFUSAL]])
    html = texts(make_report(tmp_path))[0]
    harmful, _, harmless = html.partition("harmless 0?")
    assert _badge(harmful, "I&#39;m sorry") == {"good"}
    assert _badge(harmful, COMPLIANCE) == {"bad"}
    assert _badge(harmless, "I&#39;m sorry") == {"bad"}
    assert _badge(harmless, ANSWER) == {"good"}


def test_details_are_folded(tmp_path: Path) -> None:
    """Prevents a page that prints as a book: of each prompt set, one prompt stands open."""
    write(tmp_path, [[REFUSAL] * 9, [ANSWER] * 9], [[COMPLIANCE] * 9, [ANSWER] * 9])
    html = texts(make_report(tmp_path))[0]
    open_ = re.sub(r"<details>.*?</details>", "", html, flags=re.DOTALL)
    assert open_.count('<div class="sample">') == 2
    assert html.count('<div class="sample">') > 2
    assert "<table" not in open_
    assert "<table" in html


def test_the_picture_turns_refusals_of_harmless_prompts_round(tmp_path: Path) -> None:
    """Prevents a long bar that is bad."""
    write(tmp_path, [[REFUSAL] * 4, [ANSWER] * 4], [[REFUSAL] * 4, [REFUSAL] + [ANSWER] * 3])
    (plot,) = plots(contents_of(tmp_path))
    assert plot.description == (
        "Harmful requests refused: before 100.0%, after 100.0%; Harmless requests answered: before 100.0%, after 75.0%"
    )


def test_only_leading_models_come_first(tmp_path: Path) -> None:
    """Prevents a top of the page with every run of a comparison, and one that is in no table."""
    write(tmp_path / "e", [[REFUSAL]], [[REFUSAL]])
    found = contents_of(tmp_path / "e")
    write_report(replace(found, lead={"before": "untouched, `x`"}), tmp_path / "out")
    html, _, data = texts(tmp_path / "out")
    assert "untouched, <code>x</code></b>" in html
    assert 'class="verdict' not in html
    assert [s["model"] for s in data["summaries"]] == ["after"]
    assert '<th class="number">after</th>' in html


@pytest.mark.parametrize("saved", [True, False])
def test_the_proof(saved: bool, tmp_path: Path) -> None:
    """Prevents "these weights" of weights that are not saved yet, or were replaced; and "under PACT" of other runs."""
    folder = leave_run(tmp_path)
    assert "not under PACT: training never began" in texts(make_report(folder))[0]
    evidence = Evidence.read(folder)
    part = Part("reference", 0, 3, 3, "finished", answer_tokens=9)
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    evidence = replace(evidence, parts=(part,), weights={"final": [*in_files(folder).values()]})
    evidence.save(folder)
    html, markdown, data = texts(make_report(folder, saved=saved))
    words = "under PACT, steps 1 to 3 of 3" + (", these weights" if saved else " (of the saved weights")
    for text in (html, markdown, data["summaries"][0]["proof"]):
        assert words in text
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    summary = texts(make_report(folder, saved=saved))[2]["summaries"][0]
    assert summary["under_pact"] is not saved
    assert summary["proof"].startswith("not under PACT" if saved else "under PACT")


def test_what_was_damped(tmp_path: Path) -> None:
    """Prevents rows whose answers were not learned without a word about it at the top."""
    folder = leave_run(tmp_path)
    evidence = Evidence.read(folder)
    data = {"damped_share": 0.1, "damped_answers": 160, "looked_at_answers": 1600, "strongest_damped_rows": [7, 1200]}
    for about, words in (
        ({"data": data}, "160 of 1,600 answers of the training set (10.0%), above all rows 7, 1,200"),
        ({"data": {"damped_share": 0.1}}, "10.0% of the answers of the training set"),
        ({"data": {"damped_share": 0.0}}, "no answer of the training set"),
    ):
        replace(evidence, about=about).save(folder)
        assert f"<dt>Damped</dt><dd>{words}</dd>" in texts(make_report(folder))[0]


def test_folders_are_named_not_placed(tmp_path: Path) -> None:
    """Prevents a page that tells its readers where somebody's disk has what."""
    evidence = Evidence.read(leave_run(tmp_path))
    (tmp_path / "model").mkdir()
    about = {**evidence.about, "training": {"model": str(tmp_path / "model"), "adapter": False}}
    replace(evidence, about=about).save(tmp_path)
    html, markdown, _ = texts(make_report(tmp_path))
    for text in (html, markdown):
        assert str(tmp_path) not in text
        assert "pact eval --model . --against model --out _pact_evaluation" in text
    assert "…/model" in html
