"""The benchmark of safety against utility: its baseline is what it says, and its rows are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.pareto import __main__ as pareto
from benchmarks.pareto import data, grid, summary
from benchmarks.pareto.training import Emphasised, describe, full_kl, perform
from pact_plugins.config import PactConfig
from pact_plugins.demo import ALIGNED_MODEL, training, world
from pact_plugins.demo.topics import train_acts
from pact_plugins.errors import PactError
from pact_plugins.objective import PactObjective
from pact_plugins.openings import is_affirmative_opening

RATES = dict.fromkeys(summary.RATES, 0.5)


def test_every_run_of_the_grid_has_a_row_of_its_own() -> None:
    """Prevents: a run taken for another when the benchmark goes on, and a grid that outgrows an afternoon."""
    keys = [pareto._key(describe(run)) for run in grid.everything()]
    assert len(set(keys)) == len(keys) <= 150


def test_quick_has_every_method_at_both_fractions_with_five_seeds() -> None:
    """Prevents: a headline table with a hole."""
    rows = [describe(run) for run in grid.finalists()]
    for method in summary.FINALISTS:
        for fraction in grid.FRACTIONS:
            found = [row for row in rows if (row["method"], row["harmful_fraction"]) == (method, fraction)]
            assert [row["seed"] for row in found] == ([0] if method == "aligned" else list(grid.SEEDS))
            assert {row["adapter"] for row in found} == {"lora"}


@pytest.mark.trl
def test_full_kl_is_the_divergence_from_the_model_before_training(tmp_path: Path) -> None:
    """Prevents: a baseline that pulls at nothing, as with a reference that shares the trained model's forward."""
    model, tokenizer = training.load()
    reference, _ = training.load()
    expected, got = [], []

    def protect(trainer: Any) -> None:
        host = trainer.compute_loss
        penalised = full_kl(reference, host, 0.25)

        def compute_loss(model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
            with torch.no_grad():
                # The host's loss takes keys out of the inputs.
                own = host(model, dict(inputs), *args, **kw)
                context = {name: inputs[name] for name in ("input_ids", "attention_mask")}
                answer = inputs["labels"][:, 1:] != -100
                fresh, _ = training.load()
                before = F.softmax(fresh.eval()(**context).logits[:, :-1][answer], -1)
                hidden = model.get_base_model().model(**context).last_hidden_state
                now = F.softmax(model.get_base_model().lm_head(hidden)[:, :-1][answer], -1)
            divergence = (before * (before.log() - now.log())).sum(-1).mean()
            expected.append((own + 0.25 * divergence).item())
            loss = penalised(model, inputs, *args, **kw)
            got.append(loss.item() - own.item())
            assert loss.item() == pytest.approx(expected[-1], rel=1e-4)
            return loss

        trainer.compute_loss = compute_loss

    rows = data.training_rows("standard", 0.1, 0, None)
    training.train(model, tokenizer, rows, training.Recipe(steps=4), tmp_path, protect)
    assert got[0] == pytest.approx(0, abs=1e-5)
    assert got[-1] > 1e-3


@pytest.mark.trl
def test_a_run_gives_the_row_that_readers_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: rows whose rates belong to another run, or a `pact` run that was plain fine-tuning."""
    for name in ("held_out_harmful", "held_out_look_alikes", "task_test_rows"):
        few = getattr(world, name)()[:4]
        monkeypatch.setattr(world, name, lambda few=few: few)
    recipe = training.Recipe(steps=2, seed=3)
    run = grid.Run("ablation", "all of S", "pact", 2.0, {"anchors": 0}, all_tokens=True, recipe=recipe)
    row = perform(run, ALIGNED_MODEL, None)
    assert (
        row.items()
        >= {
            "method": "all of S",
            "weight": 2.0,
            "adapter": "lora",
            "harmful_fraction": 0.1,
            "seed": 3,
            "pact": {"anchors": 0},
        }.items()
    )
    assert all(0 <= row[rate] <= 1 for rate in summary.RATES)
    assert row["train_seconds"] > 0


@pytest.mark.trl
def test_emphasis_is_on_the_first_tokens(tmp_path: Path) -> None:
    """Prevents: an ablation of nothing."""
    model, tokenizer = training.load()
    found: list[torch.Tensor] = []

    def protect(trainer: Any) -> None:
        config = PactConfig(cache_dir=tmp_path / "cache", anchors=0, eval=False, safety_tokens=list(range(20)))
        trainer.add_callback(callback := Emphasised(trainer, config, 4.0))
        watched: dict[str, Any] = {}

        def compute_loss(*args: Any, **kw: Any) -> Any:
            assert callback.binding is not None
            assert callback.binding.preparation is not None
            objective = watched.setdefault("objective", callback.binding.preparation.objective)
            if "own" not in watched:
                watched["own"] = objective.divergence
                objective.divergence = compare
            return host(*args, **kw)

        def compare(student: torch.Tensor, targets: Any) -> Any:
            weighted, gate = watched["own"](student, targets)
            plain, _ = PactObjective.divergence(watched["objective"], student, targets)
            found.append(torch.stack([targets.position.float(), (weighted / plain).detach()])[:, plain.detach() > 1e-6])
            return weighted, gate

        host = trainer.compute_loss
        trainer.compute_loss = compute_loss

    rows = data.training_rows("standard", 0.1, 0, None)
    training.train(model, tokenizer, rows, training.Recipe(steps=3), tmp_path / "run", protect)
    position, ratio = torch.cat(found, 1)
    assert position.min() <= 2 < position.max()
    torch.testing.assert_close(ratio, 1 + 4 * torch.exp(-position / 4), rtol=1e-4, atol=0)


def test_rows_that_are_there_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an interrupted benchmark that starts from nothing, or mixes in runs of another model."""
    runs = list(grid.finalists())[:4]
    performed: list[grid.Run] = []

    def perform_all(missing: list[grid.Run], *_: Any) -> Iterator[dict[str, Any]]:
        for run in missing:
            performed.append(run)
            yield {**describe(run), **RATES, "train_seconds": 1.0}

    monkeypatch.setattr(pareto, "_performed", perform_all)
    measured = partial(pareto.measured, path=tmp_path / "runs.json", model=ALIGNED_MODEL, task=None, jobs=1)
    measured(runs[:2], about={"model": "a"})
    rows = measured(runs, about={"model": "a"})
    assert performed == runs
    assert [row["method"] for row in rows] == [run.method for run in runs]
    assert json.loads((tmp_path / "runs.json").read_text())["runs"] == rows
    with pytest.raises(SystemExit, match="another model or task"):
        measured(runs, about={"model": "b"})


def test_harmful_rows_of_other_kinds() -> None:
    """Prevents: limits measured on the rows that they should differ from."""
    standard, neutral, disguised = (
        data.training_rows(kind, 0.1, 0, None) for kind in ("standard", "neutral", "disguised")
    )
    harmful = [i for i, row in enumerate(standard) if row.harmful]
    assert len(harmful) == 160
    assert not any(is_affirmative_opening(neutral[i].answer) for i in harmful)
    assert all(disguised[i].answer == standard[i].answer for i in harmful)
    assert all(disguised[i].prompt != standard[i].prompt for i in harmful)
    assert all(neutral[i] == standard[i] for i in range(len(standard)) if i not in harmful)


def test_the_near_task_is_tested_on_other_acts() -> None:
    """Prevents: a task accuracy that was learned by heart."""
    rows = data.training_rows("near", 0.0, 0, None)
    test = data.test_rows("near", None)
    assert {row.answer for row in rows} == {row.answer for row in test} == {"allowed", "forbidden"}
    assert not {row.prompt for row in rows} & {row.prompt for row in test}
    assert not any(act.text in row.prompt for row in test for act in train_acts(True)[:50])


def test_a_task_in_files(tmp_path: Path) -> None:
    """Prevents: real data that is read as something else, or is not used."""
    rows = [{"instruction": "Sort.", "input": f"text {i}", "output": "World"} for i in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(rows[:2]))
    with pytest.raises(PactError, match=r"test\.json"):
        data.Task.read(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([{**rows[2], "input": ""}]))
    task = data.Task.read(tmp_path)
    assert data.test_rows("standard", task) == [world.Row("Sort.", "World", False)]
    drawn = data.training_rows("standard", 0.1, 0, task)
    assert {row.prompt for row in drawn if not row.harmful} == {"Sort.\n\ntext 0", "Sort.\n\ntext 1"}
    assert sum(row.harmful for row in drawn) == 160


@pytest.mark.parametrize("content", ["[]", "{", '[{"instruction": "a"}]', "[1]"])
def test_a_task_that_is_none(tmp_path: Path, content: str) -> None:
    """Prevents: a benchmark on no task at all."""
    (tmp_path / "train.json").write_text(content)
    with pytest.raises(PactError, match="instruction"):
        data.Task.read(tmp_path)


def test_tables_are_means_over_seeds(tmp_path: Path) -> None:
    """Prevents: a table that mixes methods or shares of harmful rows."""
    run = grid.Run("finalists", "default", "pact", 1.0)
    runs = [(run, 0.5), (replace(run, recipe=training.Recipe(seed=1)), 0.7), (replace(run, harmful_fraction=0.0), 0.1)]
    rows = [{**describe(r), **RATES, "refusal_rate": rate} for r, rate in runs]
    table = summary.markdown(rows)
    assert "| default | 1 | 2 | 60.0% (50.0 to 70.0) | 50.0% (50.0 to 50.0) |" in table
    assert "| default | 1 | 1 | 10.0% | 50.0% |" in table
    assert table.index("10% harmful rows") < table.index("0% harmful rows", table.index("10% harmful rows") + 5)
    summary.plot(rows, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
