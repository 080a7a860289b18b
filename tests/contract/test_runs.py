"""Whole runs through every host: the probe, evidence, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import LlamaForCausalLM

from pact_plugins import PactCallback, PactError
from pact_plugins.method.refusal_probe import Probe
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.verification import verify
from pact_plugins.storage import files
from tests import tiny
from tests.contract.hosts import HOSTS, LORA, Trainer, config, losses, model_of

pytestmark = pytest.mark.usefixtures("brief_runs")


def train_probed(host: Trainer, folder: Path, probe: Any, model: Any = None, **settings: Any) -> Any:
    """A trainer that has run, with the drift probe or without."""
    trainer = host(model or tiny.llama(), folder, **{"max_steps": 5, "logging_steps": 2, **settings})
    trainer.add_callback(PactCallback(trainer, config(folder, probe=probe)))
    trainer.train(resume_from_checkpoint=settings.get("resume_from_checkpoint"))
    return trainer


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("host", HOSTS)
def test_the_probe_changes_nothing(host: Trainer, adapter: str, tmp_path: Path) -> None:
    """Prevents a run that goes another way because it is watched, and measurements that nobody sees."""
    checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    results = []
    for probe in (False, {"every": 3, "prompts": 2}):
        torch.manual_seed(0)
        model: Any = tiny.llama(attention_dropout=0.1)
        if adapter == "lora":
            model = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"]))
        settings = checkpointing if adapter == "full" else {}
        results.append(train_probed(host, tmp_path, probe, model, neftune_noise_alpha=5.0, **settings))
    plain, probed = (dict(trainer.model.named_parameters()) for trainer in results)
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    entries = [entry for entry in results[1].state.log_history if "pact/probe_harmful" in entry]
    assert [entry["step"] for entry in entries] == [0, 3]
    assert "loss" in entries[1]
    assert "pact/kl" in entries[1]
    assert entries[0]["pact/probe_harmful"] != entries[1]["pact/probe_harmful"]
    assert all(0 <= entry["pact/probe_refusing"] <= 1 and "pact/probe_harmless" in entry for entry in entries)
    assert not any("pact/probe_harmful" in entry for entry in results[0].state.log_history)


def falling(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Lets the probe find these shares of refusing, one after the other."""
    found = [torch.tensor([8.0, 10 * share, -3.0, 10.0]) for share in shares]
    monkeypatch.setattr(Probe, "sums", lambda *_: found.pop(0))


@pytest.mark.parametrize("host", HOSTS)
def test_the_probe_stops_a_run(
    host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prevents a run that trains on after its refusals are gone, or one that stops and does not say why."""
    probe = {"every": 1, "prompts": 2, "stop_below": 0.8}
    falling(monkeypatch, 1.0, 0.8, 0.7)
    trainer = train_probed(host, tmp_path, probe)
    assert trainer.state.global_step == 2
    assert [e["pact/probe_refusing"] for e in trainer.state.log_history if "pact/probe_refusing" in e] == [
        pytest.approx(share) for share in (1.0, 0.8, 0.7)
    ]
    assert "leans towards refusing 70% of the held-out harmful prompts" in caplog.text
    note = tmp_path / "out" / "pact_stopped.json"
    assert files.read(note)["step"] == 2
    falling(monkeypatch, *[1.0] * 6)
    assert train_probed(host, tmp_path, probe).state.global_step == 5
    assert not note.exists()
    falling(monkeypatch, 0.7)
    with pytest.raises(PactError, match="before training"):
        train_probed(host, tmp_path, probe)


@pytest.mark.parametrize("host", HOSTS)
def test_the_probe_goes_on_in_a_resumed_run(host: Trainer, tmp_path: Path) -> None:
    """Prevents trained weights from being measured as the start, and a probe that is silent after a resume."""
    probe = {"every": 2, "prompts": 2}
    train_probed(host, tmp_path, probe, max_steps=3, save_strategy="steps", save_steps=3)
    checkpoint = str(tmp_path / "out" / "checkpoint-3")
    resumed = train_probed(host, tmp_path, probe, resume_from_checkpoint=checkpoint)
    whole = train_probed(host, tmp_path / "whole", probe)
    probes = [
        {e["step"]: e["pact/probe_harmful"] for e in trainer.state.log_history if "pact/probe_harmful" in e}
        for trainer in (resumed, whole)
    ]
    assert list(probes[0]) == list(probes[1]) == [0, 2, 4]
    assert probes[0] == pytest.approx(probes[1], rel=1e-5)


def trained(host: Trainer, folder: Path, adapter: str = "full", resume: str | None = None, **settings: Any) -> Any:
    """A trainer that has run under PACT to its end."""
    trainer = host(model_of(adapter), folder, **settings)
    trainer.add_callback(PactCallback(trainer, config(folder, anchors=2)))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(("adapter", "steps"), [("full", (1, 3)), ("lora", (2,)), ("qlora", (2,))])
@pytest.mark.parametrize("host", HOSTS)
def test_a_resumed_run_equals_an_uninterrupted_one(
    host: Trainer, adapter: str, steps: tuple[int, ...], tmp_path: Path
) -> None:
    """Prevents a resumed run from being held to its own trained weights, or to anything but what it began with."""
    settings: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "learning_rate": 0.5}
    whole = losses(trained(host, tmp_path, adapter, **settings))
    assert list(whole) == [1, 2, 3, 4]
    assert whole[4]["pact/kl"] > 1e-5
    for step in steps:
        resumed = losses(trained(host, tmp_path, adapter, str(tmp_path / "out" / f"checkpoint-{step}"), **settings))
        for later in range(step + 1, 5):
            # TRL trains the adapters of 4-bit models in bfloat16: its rounding, not the run, differs after a resume.
            assert resumed[later] == pytest.approx(whole[later], rel=5e-2 if adapter == "qlora" else 1e-5, abs=1e-6)
    found = verify(tmp_path / "out")
    assert found.holds, found.sentence
    assert f"resumed after step {', '.join(map(str, steps))}" in found.sentence


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_leaves_evidence(host: Trainer, tmp_path: Path) -> None:
    """Prevents evidence that says more, or less, than what the trainer's log says."""
    trainer = trained(host, tmp_path, gradient_accumulation_steps=2)
    logged = losses(trainer)
    evidence = Evidence.read(tmp_path / "out")
    (part,) = evidence.parts
    assert (part.started_from, part.first_step, part.last_step, part.ended) == ("reference", 0, 2, "finished")
    assert part.micro_batches == 2 * 2
    for name in ("answer_tokens", "cache_hits", "anchor_tokens"):
        assert getattr(part, name) == sum(entry[f"pact/{name}"] for entry in logged.values()) > 0
    assert part.supervised_tokens >= part.answer_tokens
    assert (part.loss_at_start["pact/kl"], part.loss_at_end["loss"]) == (logged[1]["pact/kl"], logged[2]["loss"])
    assert evidence.trained_model != evidence.identity.model
    assert verify(tmp_path / "out").holds


@pytest.mark.parametrize("host", HOSTS)
def test_an_explicit_off_is_no_evidence(host: Trainer, tmp_path: Path) -> None:
    """Prevents a run without PACT from passing for one with it, also in the folder of one that had it."""
    trained(host, tmp_path)
    trainer = host(tiny.llama(), tmp_path)
    trainer.add_callback(PactCallback(trainer, False))
    trainer.train()
    assert "`pact: false`" in verify(tmp_path / "out").sentence


def test_a_second_training_keeps_the_first_reference(tmp_path: Path) -> None:
    """Prevents a second `train()` from taking trained weights for the reference."""
    trainer = trained(HOSTS[0].values[0], tmp_path, learning_rate=0.5)
    first = Evidence.read(tmp_path / "out")
    trainer.train()
    second = Evidence.read(tmp_path / "out")
    assert (second.identity, second.values) == (first.identity, first.values)
    assert [part.started_from for part in second.parts] == ["reference", "trained"]
    assert second.parts[1].loss_at_start["pact/kl"] > 1e-5 > first.parts[0].loss_at_start["pact/kl"]
    assert verify(tmp_path / "out").holds


def test_running_out_of_memory_keeps_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the retry with a smaller batch, which keeps the trained weights, from making them the reference."""
    trainer = HOSTS[0].values[0](tiny.llama(), tmp_path, auto_find_batch_size=True, learning_rate=0.5)
    callback = PactCallback(trainer, config(tmp_path))
    trainer.add_callback(callback)
    step, steps = trainer.training_step, []

    def full(*args: Any, **kw: Any) -> Any:
        steps.append(trainer._train_batch_size)
        if len(steps) == 2:
            raise RuntimeError("CUDA out of memory.")
        return step(*args, **kw)

    monkeypatch.setattr(trainer, "training_step", full)
    trainer.train()
    assert steps[-1] < steps[0]
    parts = Evidence.read(tmp_path / "out").parts
    assert [(part.started_from, part.ended) for part in parts] == [("reference", "restarted"), ("trained", "finished")]
    assert parts[1].loss_at_start["pact/kl"] > 1e-5
    assert verify(tmp_path / "out").holds


def test_a_trained_model_is_no_reference(tmp_path: Path) -> None:
    """Prevents a second trainer from holding a fine-tuned model to itself."""
    trainer = trained(HOSTS[0].values[0], tmp_path)
    again = HOSTS[0].values[0](trainer.model, tmp_path / "again")
    again.add_callback(PactCallback(again, config(tmp_path)))
    with pytest.raises(PactError, match="fine-tuned under PACT"):
        again.train()


@pytest.mark.parametrize("what", ["replaced", "removed", "callback removed"])
def test_a_run_does_not_go_on_without_pact(what: str, tmp_path: Path) -> None:
    """Prevents a run from looking protected after something took PACT off it."""
    trainer = HOSTS[0].values[0](tiny.llama(), tmp_path, max_steps=4)
    callback = PactCallback(trainer, config(tmp_path))
    assert callback.binding is not None
    trainer.add_callback(callback)
    step, steps = trainer.training_step, []

    def break_it(*args: Any, **kw: Any) -> Any:
        steps.append(1)
        if len(steps) == 3 and callback.binding is not None:
            if what == "replaced":
                trainer.compute_loss = callback.binding._compute_loss
            elif what == "removed":
                callback.binding.remove()
            else:
                trainer.remove_callback(callback)
        return step(*args, **kw)

    trainer.training_step = break_it
    if what == "callback removed":
        trainer.train()
        assert "did not end: the last record is of step 0 of 4" in verify(tmp_path / "out").sentence
        return
    with pytest.raises(PactError, match="report PACT and train without it"):
        trainer.train()
    assert len(steps) == 3
    assert not verify(tmp_path / "out").holds


def test_a_run_that_constrained_nothing_fails_and_keeps_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents batches without answers from ending as a protected run, and the failure from costing the weights."""
    trainer = HOSTS[0].values[0](tiny.llama(), tmp_path)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    collate = trainer.data_collator

    def without_answers(rows: Any) -> Any:
        batch = collate(rows)
        return {**batch, "labels": torch.full_like(batch["labels"], -100)}

    monkeypatch.setattr(
        trainer, "get_train_dataloader", lambda: DataLoader(trainer.train_dataset, 4, collate_fn=without_answers)
    )
    with pytest.raises(PactError, match="answer tokens in the batches"):
        trainer.train()
    assert (tmp_path / "out" / "pact_unprotected_weights" / "model.safetensors").exists()
    assert not verify(tmp_path / "out").holds


def _merged(model: Any) -> Any:
    return model.merge_and_unload()


@pytest.mark.parametrize(
    ("adapter", "between"), [("full", None), ("lora", None), ("lora", _merged)], ids=["full", "lora", "merged"]
)
@pytest.mark.parametrize("host", HOSTS)
def test_plain_training_before_is_found(host: Trainer, adapter: str, between: Any, tmp_path: Path) -> None:
    """Prevents a notebook that trains plain first, and then holds PACT to what that left."""
    base = tiny.save(tmp_path / "base")
    models: list[Any] = [LlamaForCausalLM.from_pretrained(base) for _ in range(2)]
    plain, fresh = [get_peft_model(model, LORA) if adapter == "lora" else model for model in models]
    first = host(plain, tmp_path)
    first.train()
    trainer = host(between(plain) if between else plain, tmp_path)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    with pytest.raises(PactError, match="trained for 2 steps" if between is None else "other weights than those in"):
        trainer.train()
    trainer = host(fresh, tmp_path)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    assert trainer.train().global_step == first.state.global_step


@pytest.mark.parametrize("host", HOSTS)
def test_the_logged_loss_is_the_host_s(host: Trainer, tmp_path: Path) -> None:
    """Prevents: a perplexity made of PACT's terms, a watchdog that stops on them, curves that compare nothing."""
    trainer = host(tiny.llama(), tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    own, whole = list[float](), list[float]()

    def noting(values: list[float], compute_loss: Any) -> Any:
        def noted(model: Any, inputs: Any, *args: Any, **kw: Any) -> Any:
            loss = compute_loss(model, inputs, *args, **kw)
            if torch.is_grad_enabled():
                values.append(loss.item() / (1 if kw.get("num_items_in_batch") is not None else 2))
            return loss

        return noted

    trainer.compute_loss = noting(own, trainer.compute_loss)
    trainer.add_callback(PactCallback(trainer, config(tmp_path, weight=20.0, anchors=2, conflict="keep")))
    trainer.compute_loss = noting(whole, trainer.compute_loss)
    trainer.train()
    logged = losses(trainer)
    assert list(logged) == [1, 2]
    for step, entry in logged.items():
        of_step = slice(2 * step - 2, 2 * step)
        assert entry["loss"] == pytest.approx(sum(own[of_step]), abs=1e-3)
        assert entry["pact/loss"] == pytest.approx(sum(whole[of_step]) - sum(own[of_step]), abs=1e-3)
    assert logged[2]["pact/loss"] > 0.1
    *_, end = trainer.state.log_history
    assert end["train_loss"] == pytest.approx(sum(own) / 2, abs=1e-3)
