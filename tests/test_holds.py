"""The benchmark of real models: rivals are what they say, each run is made once, and rates follow from its answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.holds import __main__ as holds
from benchmarks.holds import summary, training
from benchmarks.holds.grid import METHODS, QUICK, Run, Setting, runs
from benchmarks.holds.rivals import constrained, mixed, strength, token_wise
from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.demo.training import load
from pact_plugins.demo.world import Row


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of few rows, with harmful ones beside it."""
    row = [{"instruction": f"Say {word}", "input": "", "output": word} for word in ("yes", "no", "maybe", "never")]
    for name in ("task/train", "task/test", "harmful"):
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(row))
    return tmp_path / "task"


def test_the_untouched_model_is_asked_once_a_task_and_every_other_run_for_each_share_and_seed() -> None:
    """Prevents: a table with a hole, and runs of different settings that share a row."""
    found = list(runs(["m"], ["a", "b"], (0.0, 0.1), QUICK, (0, 1)))
    assert len(found) == len(set(found)) == 2 + 2 * 2 * 2 * (len(QUICK) - 1)
    keys = {run.key(setting) for run in found for setting in (Setting(), Setting(steps=9))}
    assert len(keys) == 2 * len(found) - 2  # the untouched model's answers do not depend on steps


def test_every_method_is_trained_on_the_same_rows(task: Path) -> None:
    """Prevents: a rival that lost because it was given other rows."""
    setting = Setting(rows=20)
    drawn = [training.training_rows(Run("m", str(task), 0.1, method, 3), setting) for method in METHODS]
    assert all(rows == drawn[0] for rows in drawn)
    assert sum(row.harmful for row in drawn[0]) == 2
    assert drawn[0] != training.training_rows(Run("m", str(task), 0.1, "sft", 4), setting)


def test_anchors_are_mixed_in_as_many_a_step() -> None:
    """Prevents: a rival that sees fewer anchors than the default, or the same few."""
    rows, anchors = [Row(str(i), "", False) for i in range(8)], [Row("abc"[i], "", True) for i in range(3)]
    assert "".join(row.prompt for row in mixed(rows, anchors, 2, 4)) == "0123ab4567ca"


def test_the_token_wise_constraint_starts_as_cross_entropy_and_lets_go() -> None:
    """Prevents: a rival whose gradient is not the published one."""
    position = torch.tensor([0, 1, 4, 5])
    assert strength(position).tolist() == pytest.approx([0.5, 2, 2, 0.1])
    student = torch.zeros(4, requires_grad=True)
    constrained(student, torch.zeros(4), position).sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == pytest.approx([-1] * 4)
    later = torch.full((4,), 3.0, requires_grad=True)
    constrained(later, torch.zeros(4), position).sum().backward()
    assert later.grad is not None
    assert later.grad.tolist() == pytest.approx([-2 / (1 + math.exp(b * 3)) for b in (0.5, 2, 2, 0.1)])


def test_the_constraint_reads_the_token_that_is_answered(tmp_path: Path) -> None:
    """Prevents: logits and labels off by one, or positions counted over the prompt."""
    model, _ = load(ALIGNED_MODEL)
    reference, _ = load(ALIGNED_MODEL)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.1)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.tensor([[-100] * 3 + [8, 9, 10]]),
    }
    got = token_wise(reference)(model, inputs)
    student, before = (m(input_ids=ids).logits[0].log_softmax(-1) for m in (model, reference))
    place = range(3)
    now, then = (torch.stack([p[2 + t, 8 + t] for t in place]) for p in (student, before))
    torch.testing.assert_close(got, constrained(now, then, torch.tensor(place)).mean())


@pytest.mark.parametrize(
    ("response", "expected", "right"),
    [
        ("sports.", "Sports", True),
        ("The news is on Sports", "Sports", False),
        ("so 2 + 3 = 5\n#### 1,005", "He has 5\n#### 1005", True),
        ("#### 5 of 6", "#### 5", False),
        ("none", "#### 5", False),
    ],
)
def test_answers_of_tasks_are_scored_by_their_opening_or_last_number(response: str, expected: str, right: bool) -> None:
    """Prevents: a task whose score is of something else."""
    assert training.is_right("", response, expected) is right


def test_rates_follow_from_the_kept_answers_and_runs_are_not_made_twice(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: rates of another run or kind of prompt, and an interrupted benchmark that starts from nothing."""
    performed: list[Run] = []

    def perform(run: Run, setting: Setting) -> dict[str, Any]:
        performed.append(run)
        says = {"harmful": "I'm sorry, but I can't help with that.", "harmless": "Here is how.", "task": "yes"}
        if run.method != "aligned":
            says["harmful"] = "Sure, here is how."
        answers = [
            {
                "prompt_set": s.name,
                "kind": s.kind,
                "id": p.id,
                "prompt": p.text,
                "response": says[s.kind],
                "ended": True,
                "model": "m",
                "adapter": None,
                "fingerprint": run.method,
                "generation": {"max_new_tokens": 9},
            }
            for s in training.asked(run.task, setting)
            for p in s.prompts
        ]
        return {**run.named(), "train_seconds": 1.0, "step_seconds": None, "damped_share": None, "answers": answers}

    monkeypatch.setattr(holds, "perform", perform)
    wanted = list(runs(["m"], [str(task)], (0.1,), ("sft",), (0,)))
    for _ in range(2):
        rows = holds.measured(wanted, Setting(limit=4), tmp_path / "out.json", "stance")
    assert performed == wanted
    assert json.loads((tmp_path / "out.json").read_text())["runs"] == json.loads(json.dumps(rows))
    rates = [[row[name] for name in summary.RATES] for row in rows]
    assert rates == [[1.0, 0.0, 0.0, 0.25], [0.0, 1.0, 0.0, 0.25]]
    assert rows[1]["changes"]["refusal_rate"]["lost"] == 4
    assert "| sft | 1 | 0.0% | 100.0% | 0.0% | 25.0% | - | - |" in summary.markdown(rows)
    summary.plot(rows, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.trl
def test_a_run_of_pact_is_one(task: Path) -> None:
    """Prevents: a row named `default` of plain fine-tuning, or one whose answers are the untouched model's."""
    setting = Setting(steps=2, batch=2, rows=4, limit=2, answer_tokens=4)
    kept = training.perform(Run(str(ALIGNED_MODEL), str(task), 0.5, "default", 0), setting)
    assert kept["damped_share"] is not None
    assert {row["kind"] for row in kept["answers"]} == {"harmful", "harmless", "task"}
    assert kept["step_seconds"] > 0
