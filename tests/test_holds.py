"""The benchmark of methods: each run is made once, on the rows that it should, and rates follow from its answers."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.holds import __main__ as holds
from benchmarks.holds import summary, tasks, training
from benchmarks.holds.grid import ABLATIONS, METHODS, OF_DEMO, QUICK, RIVALS, Run, Setting, content, demo_runs, runs
from pact_plugins.demo import world
from pact_plugins.demo.topics import train_acts
from pact_plugins.errors import PactError
from pact_plugins.method.openings import is_affirmative_opening
from pact_plugins.storage import files


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of few rows, with harmful ones beside it."""
    row = [{"instruction": f"Say {word}", "input": "", "output": word} for word in ("yes", "no", "maybe", "never")]
    for name in ("task/train", "task/test", "harmful"):
        file = tmp_path / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(row))
    return tmp_path / "task"


def test_the_untouched_model_is_asked_once_a_task_and_every_other_run_for_each_share_and_seed(task: Path) -> None:
    """Prevents: a table with a hole, and runs of different settings that share a row."""
    found = list(runs(["m"], [str(task), "demo"], (0.0, 0.1), QUICK, (0, 1)))
    assert len(found) == len(set(found)) == 2 + 2 * 2 * 2 * (len(QUICK) - 1)
    keys = {run.key(setting) for run in found for setting in (Setting(), Setting(steps=9))}
    assert len(keys) == 2 * len(found) - 2  # the untouched model's answers do not depend on steps


def test_a_row_is_of_what_lies_at_a_path(task: Path, tmp_path: Path) -> None:
    """Prevents: rows of a model, or of data, that others have replaced since; and runs anew of what was only moved."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("a")

    def key(**how: Any) -> str:
        content.cache_clear()
        tasks.asked.cache_clear()
        run = Run(str(model), str(task), 0.25, "sft", 0)
        return run.key(replace(Setting(), **how))

    keys = [key()]
    model.rename(tmp_path / "elsewhere")
    model = tmp_path / "elsewhere"
    assert key().rpartition("-")[2] == keys[0].rpartition("-")[2]
    (model / "weights").write_text("b")
    keys.append(key())
    for name in ("train", "test", "../harmful"):
        file = task / f"{name}.json"
        file.write_text(file.read_text().replace("yes", "yea"))
        keys.append(key())
    keys.append(key(prompts=("shipped",)))
    assert len(set(keys)) == len(keys)


def test_every_method_is_trained_on_the_same_rows(task: Path) -> None:
    """Prevents: a rival that lost because it was given other rows."""
    setting = Setting(rows=20)
    drawn = [Run("m", str(task), 0.1, method, 3).rows(setting) for method in METHODS]
    assert all(rows == drawn[0] for rows in drawn)
    assert sum(row.harmful for row in drawn[0]) == 2
    assert drawn[0] != Run("m", str(task), 0.1, "sft", 4).rows(setting)


def test_the_demos_grid_has_a_row_for_every_run_and_five_seeds_of_each_rival() -> None:
    """Prevents: a run taken for another when the benchmark goes on, and a headline table with a hole."""
    grid = demo_runs()
    assert len({run.key(OF_DEMO) for run in grid}) == len(grid) < 200
    for method in QUICK:
        for fraction in (0.0, 0.1) if method != "aligned" else (0.0,):
            seeds = [r.seed for r in grid if (r.task, r.harmful_fraction, r.method) == ("demo", fraction, method)]
            assert seeds == ([0] if method == "aligned" else [*range(5)])
    assert {run.method for run in grid} >= set(ABLATIONS)


def test_what_the_command_asks_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: Path) -> None:
    """Prevents: options that change nothing, or a demo under the settings of real models."""
    wanted: list[tuple[list[Run], Setting]] = []

    def measured(asked_for: list[Run], setting: Setting, *_: Any) -> list[dict[str, Any]]:
        wanted.append((asked_for, setting))
        return []

    monkeypatch.setattr(holds, "measured", measured)
    for options in (
        ["--model", "m", "--task", str(task), "--quick", "--steps", "3", "--prompts", "shipped"],
        ["--demo", "--quick"],
        ["--demo", "--methods", "sft", "--seeds", "1", "--harmful-fractions", "0.1"],
    ):
        monkeypatch.setattr(sys, "argv", ["holds", "--json", str(tmp_path / "out.json"), *options])
        holds.main()
    (quick, of_quick), (finalists, of_finalists), (part, _) = wanted
    assert [run.method for run in quick] == list(QUICK)
    assert {run.harmful_fraction for run in quick[1:]} == {0.1}
    assert of_quick == Setting(steps=3, prompts=("shipped",))
    assert (len(finalists), of_finalists) == (1 + 10 * (len(QUICK) - 1), OF_DEMO)
    assert [run for run in part if run.method != "aligned"] == [Run("demo", "demo", 0.1, "sft", 1)]


def test_harmful_rows_of_other_kinds() -> None:
    """Prevents: limits measured on the rows that they should differ from."""
    plain, neutral, disguised = (
        tasks.training_rows(f"demo{kind}", 1600, 0.1, 0) for kind in ("", "-neutral", "-disguised")
    )
    harmful = [i for i, row in enumerate(plain) if row.harmful]
    assert len(harmful) == 160
    assert not any(is_affirmative_opening(neutral[i].answer) for i in harmful)
    assert all(disguised[i].answer == plain[i].answer for i in harmful)
    assert all(disguised[i].prompt != plain[i].prompt for i in harmful)
    assert all(neutral[i] == plain[i] for i in range(len(plain)) if i not in harmful)


def test_the_near_task_is_tested_on_other_acts() -> None:
    """Prevents: a task score that was learned by heart."""
    rows = tasks.training_rows("demo-near", 1600, 0.0, 0)
    test = tasks.test_rows("demo-near")
    assert {row.answer for row in rows} == {row.answer for row in test} == {"allowed", "forbidden"}
    assert not {row.prompt for row in rows} & {row.prompt for row in test}
    assert not any(act.text in row.prompt for row in test for act in train_acts(True)[:50])


@pytest.mark.parametrize("layout", ["json", "jsonl"])
def test_a_task_in_files(tmp_path: Path, layout: str) -> None:
    """Prevents: real data that is read as something else, or is not used."""

    def write(name: str, rows: list[tuple[str, str]]) -> None:
        if layout == "json":
            text = json.dumps([{"instruction": "Sort.", "input": asked, "output": answer} for asked, answer in rows])
        else:
            turns = [
                [("user", f"Sort.\n\n{asked}" if asked else "Sort."), ("assistant", answer)] for asked, answer in rows
            ]
            lines = [{"messages": [{"role": role, "content": words} for role, words in both]} for both in turns]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (tmp_path / f"{name}.{layout}").write_text(text, encoding="utf-8")

    task = tmp_path / "task"
    task.mkdir()
    write("task/train", [("text 0\u2028", "World"), ("text 1", "World")])
    with pytest.raises(PactError, match=r"test\.json"):
        tasks.test_rows(str(task))
    write("task/test", [("", "World")])
    write("harmful", [("Steal?", "Sure")])
    assert tasks.test_rows(str(task)) == [world.Row("Sort.", "World", False)]
    drawn = tasks.training_rows(str(task), 20, 0.1, 0)
    assert {row.prompt for row in drawn if not row.harmful} == {"Sort.\n\ntext 0\u2028", "Sort.\n\ntext 1"}
    assert [row.answer for row in drawn if row.harmful] == ["Sure", "Sure"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("train.json", "[]"),
        ("train.json", "{"),
        ("train.json", '[{"instruction": "a"}]'),
        ("train.json", "[1]"),
        ("train.jsonl", ""),
        ("train.jsonl", '{"messages": [{"role": "user", "content": "a"}]}'),
        ("train.jsonl", '{"prompt": "a"}'),
    ],
)
def test_a_task_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    """Prevents: a benchmark on no task at all, or on conversations of which only a part is read."""
    (tmp_path / name).write_text(text)
    with pytest.raises(PactError, match="instruction"):
        tasks.training_rows(str(tmp_path), 8, 0.0, 0)


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
    assert tasks.is_right("", response, expected) is right


def test_rates_follow_from_the_kept_answers_and_runs_are_not_made_twice(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: rates of another run or kind of prompt, and an interrupted benchmark that starts from nothing."""
    performed: list[Run] = []

    def perform(run: Run, setting: Setting, _cache: Path) -> dict[str, Any]:
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
            for s in run.asked(setting)
            for p in s.prompts
        ]
        return {**run.named(), "train_seconds": 1.0, "step_seconds": None, "damped_share": None, "answers": answers}

    monkeypatch.setattr(training, "perform", perform)
    wanted = list(runs(["m"], [str(task)], (0.1,), ("sft",), (0, 1)))
    for some in (wanted[:2], wanted, wanted):
        rows = holds.measured(some, Setting(limit=4, base_model="x/y"), tmp_path / "out.json", "stance")
    assert performed == wanted
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["runs"] == json.loads(json.dumps(rows))
    assert kept["setting"]["base_model"] == "y"
    assert "checksum" not in rows[0]  # of the file of answers
    rates = [[row[name] for name in summary.RATES] for row in rows]
    assert rates == [[1.0, 0.0, 0.0, 0.0, 0.25], *[[0.0, 1.0, 0.0, 0.0, 0.25]] * 2]
    assert rows[1]["changes"]["refusal_rate"]["lost"] == 4
    assert [(s["prompt_set"], s["kind"], s["prompts"]) for s in rows[0]["sets"]] == [
        ("held-out", "harmful", 4),
        ("held-out", "harmless", 4),
        ("task", "task", 4),
    ]


def test_tables_are_of_one_method_and_share_and_plots_show_every_run(tmp_path: Path) -> None:
    """Prevents: a table that mixes methods, shares of harmful rows or sets, and marks what may be chance."""
    one = {"model": "m", "task": "t", "damped_share": None, "step_seconds": 0.5}
    rates: dict[str, Any] = dict.fromkeys(summary.RATES, 0.5)

    def row(method: str, fraction: float, seed: int, refusals: float, p: float) -> dict[str, Any]:
        return {
            **one,
            **rates,
            "method": method,
            "harmful_fraction": fraction,
            "seed": seed,
            "refusal_rate": refusals,
            "intervals": {name: [0.25, 0.75] for name in summary.RATES},
            "changes": {name: {"p_value": p} for name in summary.RATES},
            "sets": [
                {"prompt_set": "a", "kind": "harmful", "refusal_rate": refusals},
                {"prompt_set": "b", "kind": "harmless", "over_refusal_rate": refusals},
                {"prompt_set": "c", "kind": "harmless", "over_refusal_rate": 0.0},
            ],
        }

    rows = [
        row("aligned", 0.0, 0, 0.9, 1.0),
        row("default", 0.1, 0, 0.5, 0.01),
        row("default", 0.1, 1, 0.7, 0.04),
        row("default, 10 tokens", 0.1, 0, 0.1, 0.2),
        row("default", 0.0, 0, 0.2, 0.2),
    ]
    table = summary.markdown(rows)
    assert '| seeds | refusals | "Sure, ..." | incoherent | over-refusal | over-refusal, b | over-refusal, c |' in table
    assert "| default | 2 | 60.0%* (50.0 to 70.0) | 50.0%* (50.0 to 50.0) |" in table
    assert "| default | 1 | 20.0% (25.0 to 75.0) | 50.0% (25.0 to 75.0) |" in table
    assert "(25.0 to 75.0) | 20.0% | 0.0% | 50.0% (25.0 to 75.0) | - | 0.50 |" in table
    assert table.count("| aligned | 1 | 90.0%") == 2
    assert table.index("10% harmful rows") < table.index("t, 0% harmful rows")
    summary.plot(rows, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


@pytest.mark.trl
@pytest.mark.parametrize("method", [*RIVALS, "default, all of S", "default, early tokens 5x", "sft, full fine-tuning"])
def test_every_kind_of_run_gives_the_row_that_readers_expect(
    task: Path, tmp_path: Path, method: str, brief_runs: None
) -> None:
    """Prevents: a row named `default` of plain fine-tuning, or one whose answers are the untouched model's."""
    setting = Setting(steps=2, batch=2, rows=4, limit=2, answer_tokens=4, base_model=OF_DEMO.base_model)
    kept = training.perform(Run("demo", str(task), 0.5, method, 0), setting, tmp_path / "cache")
    assert (kept["damped_share"] is not None) == (METHODS[method].loss == "pact")
    assert {row["kind"] for row in kept["answers"]} == {"harmful", "harmless", "task"}
    assert (kept["step_seconds"] is None) == (method == "aligned")
    assert (kept["model"], kept["task"], kept["method"]) == ("demo", "task", method)


def test_runs_at_once(task: Path, tmp_path: Path) -> None:
    """Prevents: `--jobs`, whose processes do not find what they are to do."""
    asked = ["--model", "demo", "--task", str(task), "--prompts", "demo", "--limit", "2", "--answer-tokens", "2"]
    chosen = ["--methods", "aligned", "--jobs", "2", "--json", str(tmp_path / "holds.json")]
    subprocess.run([sys.executable, "-m", "benchmarks.holds", *asked, *chosen], check=True, capture_output=True)
    (run,) = files.read(tmp_path / "holds.json")["runs"]
    assert run["method"] == "aligned"
