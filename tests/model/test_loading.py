"""Models and tokenizers that cannot be loaded, told in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import hub

from benchmarks.tiny_models import tiny_model
from pact_plugins.errors import PactError
from pact_plugins.method.finder import load_base
from pact_plugins.model.loading import LanguageModel, pretrained
from tests import tiny


def load(name: str, kind: Any = LanguageModel) -> Any:
    return pretrained(kind, name, consequence="Nothing works.")


def test_options_reach_transformers(tmp_path: Path) -> None:
    """Prevents a precision that a caller asks for and does not get."""
    path = tiny.save(tmp_path)
    model = pretrained(AutoModelForCausalLM, path, consequence="", dtype=torch.float16)
    assert next(model.parameters()).dtype == torch.float16
    assert load(path, AutoTokenizer).chat_template == tiny.TEMPLATE


@pytest.mark.parametrize("model_type", ["llava", "qwen3_5", "llama"])
def test_the_class_that_a_checkpoint_names(model_type: str, tmp_path: Path) -> None:
    """Prevents a model that sees images from being refused (llava), or from losing the part that does (qwen3_5)."""
    kind = AutoModelForCausalLM if model_type == "llama" else AutoModelForImageTextToText
    saved: Any = tiny_model(model_type, kind)
    saved.save_pretrained(tmp_path / "model")
    loaded = load(str(tmp_path / "model"), LanguageModel)
    assert type(loaded) is type(saved)
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    get_peft_model(loaded, LoraConfig(target_modules="all-linear")).save_pretrained(str(tmp_path / "adapter"))
    assert type(load(str(tmp_path / "adapter"), LanguageModel)) is type(saved)


def test_nothing_there(tmp_path: Path) -> None:
    """Prevents a stack trace of the hub's client where a path is wrong."""
    with pytest.raises(PactError) as caught:
        load(str(tmp_path / "nothing"))
    for words in ("a model and its tokenizer under", "nothing", "Nothing works.", "hf auth login"):
        assert words in str(caught.value)


def test_a_gated_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace, or silence, where a model needs access that the user was not given."""

    def refuses(*_arguments: Any, **_options: Any) -> str:
        raise GatedRepoError("Access to model somebody/gated is restricted.", response=MagicMock())

    monkeypatch.setattr(hub, "hf_hub_download", refuses)
    for kind in (AutoModelForCausalLM, AutoTokenizer):
        with pytest.raises(PactError) as caught:
            load("somebody/gated", kind)
        assert "gated repo" in str(caught.value)
        assert "hf auth login" in str(caught.value)


def test_damaged_weights(tmp_path: Path) -> None:
    """Prevents a stack trace where a download was cut off."""
    path = tiny.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PactError, match="SafetensorError"):
        load(path)


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace where a quantised model needs a package that is not installed."""

    class Kind:
        @staticmethod
        def from_pretrained(name: str) -> None:
            raise ImportError(f"{name} needs bitsandbytes")

    with pytest.raises(PactError, match="x needs bitsandbytes"):
        load("x", Kind)


def test_the_base_model_names_its_setting(tmp_path: Path) -> None:
    """Prevents an error that leaves open which of the run's two models is missing."""
    with pytest.raises(PactError) as caught:
        load_base(str(tmp_path / "nothing"), "cpu")
    assert "`pact.base_model`" in str(caught.value)
    assert "leave `base_model` out" in str(caught.value)
