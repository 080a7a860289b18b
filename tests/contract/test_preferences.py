"""Anchors beside DPO: what every run under PACT has, where no row is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pact_plugins import PactCallback, PactError
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.verification import verify
from pact_plugins.storage import files
from tests import tiny
from tests.contract.commands import run, shortened
from tests.contract.hosts import config, dpo_trainer

pytestmark = pytest.mark.usefixtures("brief_runs")

HOSTS = [pytest.param("trl", id="trl"), pytest.param("axolotl", id="axolotl", marks=pytest.mark.axolotl)]


def trained(host: str, folder: Path, adapter: str = "full", resume: str | None = None, **settings: Any) -> Any:
    """A trainer that has run under PACT to its end, and saved its weights."""
    trainer = dpo_trainer(host, adapter, folder, **settings)
    trainer.add_callback(PactCallback(trainer, config(folder, anchors=2)))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return trainer


def logged(trainer: Any) -> dict[int, dict[str, float]]:
    """Loss, margin and PACT's metrics of each step."""
    of_steps = (entry for entry in trainer.state.log_history if "loss" in entry)
    shown = ("loss", "rewards/margins", "pact/loss", "pact/anchor_kl", "pact/anchor_tokens")
    return {entry["step"]: {name: entry[name] for name in shown} for entry in of_steps}


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_leaves_evidence_and_a_report(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents evidence or a table that tells of rows that were never held, and questions that are not asked."""
    trainer = dpo_trainer(host, "lora", tmp_path, gradient_accumulation_steps=2)
    asked = {"limit": 4, "max_new_tokens": 4}
    trainer.add_callback(PactCallback(trainer, config(tmp_path, anchors=2, eval=asked)))
    trainer.train()
    trainer.save_model()
    steps, (part,) = logged(trainer), Evidence.read(tmp_path / "out").parts
    assert part.anchor_tokens == sum(entry["pact/anchor_tokens"] for entry in steps.values()) > 0
    assert (part.micro_batches, part.answer_tokens, part.cache_hits, part.last_step) == (4, 0, 0, 2)
    assert part.loss_at_end["pact/anchor_kl"] == steps[2]["pact/anchor_kl"] > 1e-4 > steps[1]["pact/anchor_kl"]
    assert steps[2]["loss"] < steps[1]["loss"]
    found = verify(tmp_path / "out")
    assert found.holds, found.sentence
    assert "answer tokens of anchors constrained, and no row; the weights in adapter_model.safe" in found.sentence
    assert any("pact_eval/held-out/harmful/stance/refusal_rate_after" in e for e in trainer.state.log_history)
    assert "keep: beside this trainer" in capsys.readouterr().out


@pytest.mark.parametrize("adapter", ["full", "trained lora"])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(adapter: str, tmp_path: Path) -> None:
    """Prevents anchors that are asked of trained weights, or begin anew, after a resume."""
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = logged(trained("trl", tmp_path, adapter, **settings))
    resumed = logged(trained("trl", tmp_path, adapter, str(tmp_path / "out" / "checkpoint-2"), **settings))
    for step in (3, 4):
        assert resumed[step] == pytest.approx(whole[step], rel=1e-5, abs=1e-6)
    found = verify(tmp_path / "out")
    assert found.holds, found.sentence
    assert "resumed after step 2" in found.sentence


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    """Prevents anchors that count once for each micro-batch, or the less the more there are."""
    trainers = [
        trained("trl", tmp_path / str(size), gradient_accumulation_steps=4 // size, per_device_train_batch_size=size)
        for size in (4, 2)
    ]
    once, twice = ({n: p.detach() for n, p in t.model.named_parameters()} for t in trainers)
    assert logged(trainers[0])[2]["pact/loss"] > 1e-3
    for name, expected in once.items():
        torch.testing.assert_close(twice[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", ["ipo", "kept reference", "streaming"])
def test_other_ways_of_dpo(way: str, tmp_path: Path) -> None:
    """Prevents a loss, a reference or a data set of DPO's beside which no anchor joins, or whose run stops."""
    loss_type, kept = ["ipo" if way == "ipo" else "sigmoid"], way == "kept reference"
    trainer = dpo_trainer("trl", "lora", tmp_path, loss_type=loss_type, precompute_ref_log_probs=kept)
    if way == "streaming":
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    trainer.add_callback(PactCallback(trainer, config(tmp_path, anchors=2)))
    trainer.train()
    assert logged(trainer)[2]["pact/anchor_kl"] > 1e-4
    assert verify(tmp_path / "out").holds


@pytest.mark.parametrize("what", ["compute_loss", "anchors"])
def test_a_run_does_not_go_on_without_anchors(what: str, tmp_path: Path) -> None:
    """Prevents a step that nothing joins: what replaces the loss, or a step in which no anchor counts."""
    trainer = dpo_trainer("trl", "full", tmp_path)
    callback = PactCallback(trainer, config(tmp_path, anchors=2))
    trainer.add_callback(callback)
    step = trainer.training_step

    def break_it(*args: Any, **kw: Any) -> Any:
        assert callback.binding is not None
        assert callback.binding.recorder is not None
        if what == "compute_loss":
            trainer.compute_loss = callback.binding._compute_loss
        else:
            callback.binding.recorder.add = lambda _counts: None
        return step(*args, **kw)

    trainer.training_step = break_it
    with pytest.raises(PactError, match="report PACT and train without it"):
        trainer.train()
    assert not verify(tmp_path / "out").holds


@pytest.mark.axolotl
def test_axolotl_s_own_command(tmp_path: Path) -> None:
    """Prevents a file with `rl: dpo` that is checked, and refused or trained without PACT behind it."""
    rows = [
        {"messages": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]}
        for row in tiny.preferences()
    ]
    files.write_lines(tmp_path / "pairs.jsonl", rows)
    data = [{"path": str(tmp_path / "pairs.jsonl"), "type": "chat_template.default"}]
    few = {"eval": {"limit": 4, "max_new_tokens": 4}}
    path = shortened(tmp_path, "axolotl-demo-lora.yaml", rl="dpo", micro_batch_size=4, pact=few)
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "datasets": data}))
    result = run(tmp_path, "axolotl", "pact-train", str(path), "--launcher", "python")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "rewards/margins" in result.stdout + result.stderr
    found = verify(tmp_path / "out")
    assert found.holds, found.sentence
