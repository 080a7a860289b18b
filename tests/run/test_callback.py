"""The ways in which people give a trainer its callback: each works, or is refused (`tests/bad_inputs/trainer.py`)."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from pact_plugins import PactCallback
from pact_plugins.run.evidence import Evidence
from pact_plugins.run.verification import verify
from tests import tiny
from tests.bad_inputs.case import config, trainer_on
from tests.contract.hosts import trl_trainer

pytestmark = pytest.mark.usefixtures("brief_runs")
WAYS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "trainer and dict": PactCallback,
    "trainer and keywords": lambda trainer, settings: PactCallback(trainer, **settings),
    "dict": lambda _, settings: PactCallback(settings),
    "config": lambda _, settings: PactCallback(config=settings),
    "keywords": lambda _, settings: PactCallback(**settings),
    "class": lambda *_: PactCallback,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_trainer_finds_its_callback(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a callback that looks added and constrains nothing, or whose settings are dropped."""
    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    trainer = trainer_on(tmp_path)
    settings = config(tmp_path, weight=0.5).model_dump(exclude_unset=True)
    trainer.add_callback(WAYS[way](trainer, settings))
    trainer.train()
    assert verify(tmp_path / "out").holds
    used = Evidence.read(tmp_path / "out").about["settings"]
    assert (used["weight"], used["anchors"]) == ((1.0, 4) if way == "class" else (0.5, 0))


def test_trl_takes_it_in_its_list(tmp_path: Path) -> None:
    """Prevents `callbacks=[PactCallback(...)]`, the usual way of callbacks, from training without PACT."""
    callback = PactCallback(config(tmp_path))
    trl_trainer(tiny.llama(), tmp_path, callbacks=[callback], save_strategy="steps", save_steps=1).train()
    again = trl_trainer(tiny.llama(), tmp_path, callbacks=[PactCallback(config(tmp_path))])
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    assert "resumed after step 1" in verify(tmp_path / "out").sentence
    assert verify(tmp_path / "out").holds


def test_a_callback_that_nobody_uses_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Prevents silence where a callback was made and forgotten; a trainer's own stops the trainer instead."""
    callback = PactCallback()
    del callback
    gc.collect()
    assert "no trainer began to train with it" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        PactCallback(False)
        gc.collect()
    assert not caplog.text


def test_each_trial_of_a_sweep_has_its_own_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents the second trial from being held through the first one's model, and evidence of the last trial alone."""
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial)
    seeds = iter([0, 1, 2])
    settings: dict[str, Any] = {"learning_rate": 0.5, "optim": "sgd", "logging_steps": 1}
    trainer = trainer_on(tmp_path, model_init=lambda: tiny.llama(seed=next(seeds)), **settings)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    kept: list[Evidence] = []
    for trial in range(2):
        trainer._get_output_dir = lambda trial: str(tmp_path / f"run-{trial['number']}")
        trainer.train(trial={"number": trial})
        kept.append(Evidence.read(tmp_path / f"run-{trial}"))
        assert verify(tmp_path / f"run-{trial}").holds
        (part,) = kept[-1].parts
        assert part.started_from == "reference"
        assert part.loss_at_start["pact/kl"] < 1e-5
    assert kept[0].identity.model != kept[1].identity.model
    assert kept[0].trained_model != kept[1].trained_model


class _WithAnyKeywords(Trainer):
    """The loss as people copy it from examples."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


class _InAnotherOrder(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None, return_outputs: bool = False
    ) -> Any:
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss


@pytest.mark.parametrize("kind", [_WithAnyKeywords, _InAnotherOrder])
def test_a_loss_of_ones_own_is_called_as_the_trainer_calls_it(kind: type[Trainer], tmp_path: Path) -> None:
    """Prevents a trainer of one's own that stops under PACT alone, because its loss names less than transformers'."""
    trainer = trainer_on(tmp_path)
    trainer.__class__ = kind
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    trainer.train()
    assert verify(tmp_path / "out").holds
    trainer.evaluate(trainer.train_dataset)
