"""Adapters that fit, and those of another base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from pact_plugins.errors import PactError
from pact_plugins.evaluation.loading import base_of, config_and_tokenizer, load_model, with_adapter
from tests import tiny


def adapter(folder: Path, modules: tuple[str, ...] = ("q_proj", "v_proj"), **changes: Any) -> str:
    """A LoRA adapter that changes what its model says."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=list(modules), init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(tiny.llama(**changes), config).save_pretrained(str(folder))
    return str(folder)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(6, 40)[None]).logits


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("lm_head", "up_proj"), ("embed_tokens",)])
def test_an_adapter_is_applied(modules: tuple[str, ...], tmp_path: Path) -> None:
    """Prevents the base model from being measured under the adapter's name."""
    bare = logits(tiny.llama())
    adapted = with_adapter(tiny.llama(), adapter(tmp_path, modules))
    assert not torch.allclose(logits(adapted), bare, atol=1e-3)


def test_an_adapter_of_another_base(tmp_path: Path) -> None:
    """Prevents an adapter that is applied in part, or not at all, where PEFT only warns."""
    with pytest.raises(PactError, match="size mismatch"):
        with_adapter(tiny.llama(), adapter(tmp_path / "wider", hidden_size=64))
    with pytest.raises(PactError, match="without a counterpart"):
        with_adapter(tiny.llama(), adapter(tmp_path / "deeper", num_hidden_layers=3))
    with pytest.raises(PactError, match="without a counterpart"):
        with_adapter(tiny.llama(num_hidden_layers=3), adapter(tmp_path / "flatter"))


def test_an_adapter_with_weights_that_lack(tmp_path: Path) -> None:
    """Prevents a damaged adapter from being measured as if it were whole."""
    folder = Path(adapter(tmp_path))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[2:]), folder / "adapter_model.safetensors")
    with pytest.raises(PactError, match="2 weights without a counterpart"):
        with_adapter(tiny.llama(), str(folder))


def test_no_adapter(tmp_path: Path) -> None:
    """Prevents a stack trace of PEFT where a path is wrong."""
    with pytest.raises(PactError, match="an adapter under"):
        with_adapter(tiny.llama(), str(tmp_path))


def test_the_base_that_an_adapter_names(tmp_path: Path) -> None:
    """Prevents the hint in errors and warnings from naming something else."""
    model = load_model(tiny.save(tmp_path / "base"))
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    assert base_of(str(tmp_path / "adapter")) == str(tmp_path / "base")


def test_no_model(tmp_path: Path) -> None:
    """Prevents a stack trace of the hub's client where a path is wrong or a model is gated."""
    for load in (load_model, config_and_tokenizer):
        with pytest.raises(PactError, match="hf auth login"):
            load(str(tmp_path / "nothing"))
        with pytest.raises(PactError, match="Nothing could be measured"):
            load("nobody/nothing-at-all")
