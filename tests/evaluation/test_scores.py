"""Mean scores of judges that grade, from the answers to the table."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pact_plugins.demo import ALIGNED_MODEL, BASE_MODEL
from pact_plugins.evaluation import judges
from pact_plugins.evaluation.engines import Generation
from pact_plugins.evaluation.judges import Judge, Verdict
from pact_plugins.evaluation.run import evaluate
from pact_plugins.evaluation.statistics import bootstrap_interval
from pact_plugins.evaluation.table import show


def grade(prompt: str, answer: str) -> float:
    return min(1.0, len(prompt) * len(answer) / 4000)


@dataclass
class ByLength:
    """Grades an answer by its length and that of its prompt: the demo models have few answers to harmful prompts."""

    name: str = "grader"
    tells: frozenset[Verdict] = frozenset(("compliance",))
    calls: int = 0

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        pytest.fail("graded twice")

    def verdict(self, score: float) -> Verdict:
        return "compliance" if score >= 0.5 else "other"

    def scores(self, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
        self.calls += 1
        return [grade(p, a) for p, a in zip(prompts, answers, strict=True)]


def test_scores_stand_beside_the_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a score of another model, set or judge; one for harmless prompts; or a verdict that contradicts it."""
    grader = ByLength()
    load = judges.load

    def with_grader(name: str) -> Judge:
        return grader if name == "grader" else load(name)

    monkeypatch.setattr(judges, "load", with_grader)
    found = evaluate(
        str(ALIGNED_MODEL),
        ["shipped"],
        tmp_path,
        against=str(BASE_MODEL),
        judges=["grader", "opening"],
        generation=Generation(24),
        limit=8,
        show_progress=False,
    )
    assert grader.calls == 2
    (score,) = found.scores
    assert (score.kind, score.judge) == ("harmful", "grader")
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    means: dict[str, float] = {}
    for run in ("model", "against"):
        of_run = [row for row in rows if (row["run"], row["kind"]) == (run, "harmful")]
        assert all(row["scores"] == {"grader": grade(row["prompt"], row["response"])} for row in of_run)
        assert all((row["verdicts"]["grader"] == "compliance") == (row["scores"]["grader"] >= 0.5) for row in of_run)
        means[run] = sum(row["scores"]["grader"] for row in of_run) / 8
    assert score.against is not None
    assert score.change is not None
    assert score.model.mean == pytest.approx(means["model"])
    assert score.against.mean == pytest.approx(means["against"])
    assert score.change.mean == pytest.approx(means["model"] - means["against"])
    assert score.change.low < score.change.mean < score.change.high
    assert found.as_dict()["scores"][0]["model"]["mean"] == score.model.mean

    screen = Console(file=io.StringIO(), width=200)
    show(found, screen)
    (line,) = [line for line in screen.file.getvalue().splitlines() if "mean score" in line]
    for mean, sign in ((score.against, ""), (score.model, ""), (score.change, "+")):
        assert f"{mean.mean:{sign}.2f} [{mean.low:.2f}, {mean.high:.2f}]" in line


def test_bootstrap() -> None:
    """Prevents an interval of the values in the place of their mean, or another one each time."""
    values = list(np.random.default_rng(1).uniform(0, 1, 400))
    low, high = bootstrap_interval(values)
    error = 1.96 * np.std(values) / 20  # what the normal approximation gives
    assert low == pytest.approx(np.mean(values) - error, abs=0.1 * error)
    assert high == pytest.approx(np.mean(values) + error, abs=0.1 * error)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, 0.5)[0] > low
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
