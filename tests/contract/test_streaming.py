"""Data sets that stream, through both hosts: held to what the same rows are held to that are there from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console

from pact_plugins import PactCallback, PactError
from pact_plugins.preflight import audit, estimate
from pact_plugins.preflight.guards import guards
from pact_plugins.run import documents as documents_of_run
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.report import summary
from pact_plugins.run.report.files import training_of
from pact_plugins.run.verification import verify
from tests import tiny
from tests.contract.hosts import axolotl_trainer, config, losses, model_of, moves_below, streaming, trl_trainer
from tests.contract.matrix import HERE
from tests.distributed.training import IN_ORDER

pytestmark = pytest.mark.usefixtures("brief_runs")

HOSTS = [pytest.param(host, id=host, marks=getattr(pytest.mark, host)) for host in HERE]
DAMPING = {"weight": 2.0, "anchors": 2, "conflict_threshold": 0.03}
STEPS: dict[str, Any] = {"max_steps": 4, "learning_rate": 0.5, "save_strategy": "steps", "save_steps": 2}


def trained(trainer: Any, folder: Path, resume: str | None = None) -> Any:
    trainer.add_callback(PactCallback(trainer, config(folder, **DAMPING)))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("adapter", ["lora", pytest.param("qlora", marks=pytest.mark.release)])
@pytest.mark.parametrize("host", HOSTS)
def test_the_same_rows_are_held_alike(host: str, adapter: str, tmp_path: Path) -> None:
    """Prevents: another loss or another way to train because the same rows stream; resumed, too."""
    settings = {**STEPS, "gradient_accumulation_steps": 2}
    make: Any = trl_trainer if host == "trl" else axolotl_trainer
    rows = tiny.conversations(48, 2)
    whole = trained(make(model_of(adapter), tmp_path / "whole", rows, **IN_ORDER, **settings), tmp_path / "whole")
    stream = trained(streaming(host, adapter, tmp_path / "stream", **settings), tmp_path / "stream")
    last = tmp_path / "stream" / "out" / "checkpoint-2"
    resumed = trained(streaming(host, adapter, tmp_path / "stream", **settings), tmp_path / "stream", str(last))
    expected = losses(whole)
    assert list(expected) == [1, 2, 3, 4]
    assert expected[4]["pact/kl"] > 1e-5
    assert 0 < expected[4]["pact/damped"] < 1
    # TRL trains the adapters of 4-bit models in bfloat16.
    rounding: dict[str, Any] = {"rel": 5e-2 if adapter == "qlora" else 1e-3, "abs": 1e-5}
    for step, metrics in expected.items():
        assert losses(stream)[step] == pytest.approx(metrics, **rounding)
        assert step <= 2 or losses(resumed)[step] == pytest.approx(metrics, **rounding)
    found = verify(tmp_path / "stream" / "out")
    assert found.holds, found.sentence
    assert "resumed after step 2" in found.sentence
    assert not [*(tmp_path / "stream" / "cache").glob("*/*/manifest.json")], "no row's reference is kept"


@pytest.mark.parametrize("host", HOSTS)
def test_a_resumed_stream_is_the_same(host: str, tmp_path: Path) -> None:
    """Prevents: a run that goes on beside another model below its adapter, or with other rows."""
    trained(streaming(host, "lora", tmp_path, **STEPS), tmp_path)
    last = str(tmp_path / "out" / "checkpoint-2")
    other = streaming(host, "lora", tmp_path, **STEPS)
    with torch.no_grad():
        other.model.get_base_model().model.layers[0].mlp.up_proj.weight += 0.01
    with pytest.raises(PactError, match="model = "):
        trained(other, tmp_path, last)
    other = streaming(host, "lora", tmp_path, **STEPS)
    other.train_dataset = other.train_dataset.skip(1)
    with pytest.raises(PactError, match="data = "):
        trained(other, tmp_path, last)


@pytest.mark.parametrize("host", HOSTS)
def test_a_model_that_moves_below_its_adapter(host: str, tmp_path: Path) -> None:
    """Prevents: a run that is held to a reference which follows what is trained, as where adapters are merged."""
    trainer = streaming(host, "lora", tmp_path, max_steps=2)
    moves_below(trainer)
    with pytest.raises(PactError, match="has moved"):
        trained(trainer, tmp_path)
    assert "has moved" in verify(tmp_path / "out").sentence


def test_what_is_said_is_said_of_the_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a stream that is read to its end before the first step, or figures that seem to be of all of it."""
    host = HERE[0]
    monkeypatch.setattr(documents_of_run, "READ_AHEAD", 10)
    trained(streaming(host, "lora", tmp_path, max_steps=2), tmp_path)
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "streams: what follows is said of its first rows" in printed
    assert "10 distinct sequences" in printed
    assert "one more forward pass over its rows, with the adapter off" in printed
    assert "the reference's own forward pass" in printed
    data = Evidence.read(tmp_path / "out").about["data"]
    assert (data["streams"], data["sequences"]) == (True, 10)
    assert "training set's first rows" in summary._damped(training_of(tmp_path / "out", "run"))
    monkeypatch.setattr(documents_of_run, "READ_AHEAD_TOKENS", 100)
    trained(streaming(host, "lora", tmp_path / "short", max_steps=2), tmp_path / "short")
    assert Evidence.read(tmp_path / "short" / "out").about["data"]["sequences"] == 2


def test_a_stream_that_does_not_begin_anew(tmp_path: Path) -> None:
    """Prevents: rows that are read ahead and are missing in training."""
    trainer = streaming(HERE[0], "lora", tmp_path)
    rows = iter([*trainer.train_dataset])

    class Once(torch.utils.data.IterableDataset[Any]):
        column_names = None

        def __iter__(self) -> Any:
            return rows

    trainer.train_dataset = Once()
    with pytest.raises(PactError, match="others the second time"):
        trained(trainer, tmp_path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (tiny.llama, "weights that are trained whole"),
        (
            lambda: get_peft_model(tiny.llama(), LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa")),
            r"`init_lora_weights: pissa`",
        ),
    ],
)
def test_a_model_that_will_be_gone_is_refused(model: Any, words: str, tmp_path: Path) -> None:
    """Prevents: a run that is held to the weights of the step before."""
    trainer = streaming(HERE[0], "lora", tmp_path)
    trainer.model = trainer.model_wrapped = model()
    with pytest.raises(PactError, match=words):
        PactCallback(trainer, config(tmp_path))


def test_before_a_run(tmp_path: Path) -> None:
    """Prevents: commands that stop at what the run serves, or do not say that each step costs more."""
    host = HERE[0]

    def done(act: Any, folder: Path) -> Any:
        trainer = streaming(host, "lora", folder, max_steps=2)
        trainer.callback_handler.train_dataloader = trainer.get_train_dataloader()
        return act(trainer, config(folder, **DAMPING))

    found = done(estimate.estimate, tmp_path / "estimate")
    assert found.streams
    assert found.cache_bytes == found.build_tokens == 0
    assert 0.2 < found.overhead.reference < 0.6, "a forward pass beside one with its backward pass"
    assert found.overhead.total > found.overhead.reference
    console = Console(width=200, record=True)
    estimate.show(found, console)
    shown = console.export_text()
    assert "in the first rows of the stream" in shown
    assert "computed in each step" in shown
    guarded = done(guards, tmp_path / "guards")
    assert guarded.agreement.difference < 0.01
    assert "in each step" in guarded.reference
    audited = done(audit.audit, tmp_path / "audit")
    assert audited.answers == 96
    assert audited.listed
    assert "48 sequences, the first of the stream, audited" in audit.summary(audited)
