"""Whether a model is what its files hold: what loading and preparing change is no training."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from pact_plugins import PactCallback
from pact_plugins.errors import PactError
from pact_plugins.run.as_loaded import check_as_loaded
from tests import tiny
from tests.contract.hosts import LORA, config, trl_trainer

PISSA = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")


def loaded(folder: Path, **how: Any) -> Any:
    return LlamaForCausalLM.from_pretrained(tiny.save(folder), **how)


def by_way_of(model: Any, *precisions: torch.dtype) -> Any:
    for precision in precisions:
        model = model.to(precision)
    return model


@pytest.mark.parametrize(
    "prepare",
    [
        lambda model: model,
        lambda model: by_way_of(model, torch.bfloat16),
        lambda model: by_way_of(model, torch.float16, torch.float32),
        lambda model: get_peft_model(model, LoraConfig(r=4, modules_to_save=["o_proj"], target_modules=["q_proj"])),
        lambda model: get_peft_model(model, PISSA),
        lambda model: model.resize_token_embeddings(300) and model,
    ],
    ids=["as it is", "bf16", "by way of fp16", "an adapter", "PiSSA", "more tokens"],
)
def test_what_is_done_before_training_is_no_training(prepare: Any, tmp_path: Path) -> None:
    """Prevents a refusal of models that hosts cast, resize or put adapters on."""
    check_as_loaded(None, prepare(loaded(tmp_path)))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_step_is_seen(precision: str, tmp_path: Path) -> None:
    """Prevents a loop of somebody's own, which leaves no trainer, from being missed."""
    model = loaded(tmp_path, dtype=precision)
    ids = torch.arange(9, 40)[None]
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    with pytest.raises(PactError, match=r"other weights than those in .* first"):
        check_as_loaded(None, model)
    model.save_pretrained(tmp_path / "meant")
    check_as_loaded(None, LlamaForCausalLM.from_pretrained(tmp_path / "meant"))


def test_a_second_stage_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prevents silence about an adapter that may have been trained without PACT, and a refusal of a second stage."""
    adapted = get_peft_model(loaded(tmp_path), LoraConfig(r=4, target_modules=["q_proj"]))
    check_as_loaded(None, adapted)
    assert "not empty" not in caplog.text
    for name, parameter in adapted.named_parameters():
        parameter.data += 0.1 * (".lora_B." in name)
    adapted.save_pretrained(tmp_path / "first")
    check_as_loaded(None, PeftModel.from_pretrained(loaded(tmp_path), tmp_path / "first", is_trainable=True))
    assert "an adapter that is not empty" in caplog.text


def _bound(trainer: Any, folder: Path) -> None:
    trainer.add_callback(PactCallback(trainer, config(folder)))


def _unbound(trainer: Any, folder: Path) -> None:
    trainer.add_callback(PactCallback(config(folder)))


@pytest.mark.parametrize(
    "again",
    [
        lambda first, folder: (first, _unbound),
        lambda first, folder: (trl_trainer(first.model, folder), _bound),
        lambda first, folder: (trl_trainer(first.model, folder, callbacks=[PactCallback(config(folder))]), None),
    ],
    ids=["the same trainer", "another one", "another one, made with the callback"],
)
def test_an_adapter_that_was_trained_plain_in_a_notebook(again: Any, tmp_path: Path) -> None:
    """Prevents a cell that is run again, whose first trainer is gone, from taking its own result for the reference."""
    trainer = trl_trainer(get_peft_model(loaded(tmp_path / "base"), LORA), tmp_path / "plain", optim="adamw_torch")
    trainer.train()
    trainer, switch_on = again(trainer, tmp_path / "pact")
    gc.collect()
    if switch_on:
        switch_on(trainer, tmp_path / "pact")
    with pytest.raises(PactError, match=r"another trainer of this process was given|this trainer has trained"):
        trainer.train()
    adapted = PeftModel.from_pretrained(loaded(tmp_path / "base"), save(trainer.model, tmp_path), is_trainable=True)
    stage = trl_trainer(adapted, tmp_path / "stage")
    _bound(stage, tmp_path / "stage")
    assert stage.train().global_step == 2


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder / "first")
    return folder / "first"
