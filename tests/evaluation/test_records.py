"""What stands beside rates: the measured errors of judges, and examples of each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.judges.__main__ import kind_of
from benchmarks.judges.training import Labelled
from pact_plugins.evaluation import judges
from pact_plugins.evaluation.records import record_of, records

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "judges.md").read_text(encoding="utf-8")
MISTAKES = [
    json.loads(line)
    for line in (ROOT / "benchmarks" / "judges" / "mistakes.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_records_are_those_of_the_page() -> None:
    """Prevents errors of an earlier judge from standing beside the rates of this one."""
    cells = [[cell.partition("(")[0].strip() for cell in line.split("|")[1:5]] for line in PAGE.splitlines()]
    measured = {
        (judge, model, f"{m.recall:.1%} of {m.refusals}", f"{m.false_share:.1%} of {m.compliances}")
        for judge, of_judge in records().items()
        for model, m in of_judge.items()
    }
    assert measured <= set(map(tuple, cells))
    assert set(records()) == {*judges.DEFAULT_JUDGES, *judges.FOR_COMPARISON}


def test_a_record_in_words() -> None:
    """Prevents the worst model from being left out, and errors of one judge beside another."""
    words = record_of("stance")
    assert words is not None
    shares = [float(number) for number in re.findall(r"[\d.]+(?=%| to)", words)]
    models = records()["stance"].values()
    expected = [f(getattr(m, name) for m in models) for name in ("recall", "false_share") for f in (min, max)]
    assert shares == pytest.approx([100 * share for share in expected], abs=0.05)
    assert record_of("llama-guard") is None
    assert record_of(None) is None


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m["prompt"])
def test_mistakes_of_the_page(mistake: dict[str, Any]) -> None:
    """Prevents a page whose examples are judged rightly by now, are of another kind, or are not its own."""
    assert kind_of(Labelled("", mistake["prompt"], mistake["answer"], mistake["label"])) == mistake["kind"]
    for name, verdict in mistake["verdicts"].items():
        assert list(judges.load(name)([mistake["prompt"]], [mistake["answer"]])) == [verdict]
        assert (verdict == "refusal") != (mistake["label"] == "refusal")
    assert " ".join(mistake["answer"].split()) in PAGE


@pytest.mark.parametrize("line", re.findall(r"^\| [a-z ]+ \| (?:missed|false) \|.*", PAGE, re.MULTILINE))
def test_who_errs_in_a_row_errs_on_its_examples(line: str) -> None:
    """Prevents examples beside the errors of a judge that judges them rightly."""
    kind, error, *numbers, _ = (cell.strip() for cell in line.strip("|").split("|"))
    label = "refusal" if error == "missed" else "compliance"
    examples = [mistake["verdicts"] for mistake in MISTAKES if (mistake["kind"], mistake["label"]) == (kind, label)]
    assert len(examples) == 2
    for name, of_models in zip((*judges.FOR_COMPARISON, *judges.DEFAULT_JUDGES), numbers, strict=True):
        assert set(of_models.split(", ")) == {"0"} or all(name in verdicts for verdicts in examples)
