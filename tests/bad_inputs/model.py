"""Models that PACT cannot serve, and folders of models that cannot be loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import peft
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from pact_plugins.method.finder import load_base
from pact_plugins.model.loading import pretrained
from pact_plugins.model.parity import check_parity
from pact_plugins.model.subset_head import SubsetHead
from tests import tiny
from tests.bad_inputs.case import BadInput, Begun, config, trainer_on
from tests.caches import IDS, made
from tests.rows import few


def _served(make: Callable[[], Any]) -> Begun:
    """A run on a model."""

    def make_run(folder: Path) -> Any:
        # Some models hide behind `**kw` which columns they take.
        return trainer_on(folder, model=make, remove_unused_columns=False), config(folder, safety_tokens=IDS)

    return Begun(make_run)


def _t5() -> Any:
    sizes = {"vocab_size": 300, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))


def _llama_config() -> Any:
    return tiny.llama().config


def _not_finite(value: float) -> Callable[[], Any]:
    def make() -> Any:
        model = tiny.llama()
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[3, 3] = value
        return model

    return make


def _reference_of_a_broken_model(folder: Path) -> None:
    model = _not_finite(float("nan"))()
    made(folder / "cache", SubsetHead(model, IDS), few())


def _with_another_head() -> Any:
    model = tiny.llama()
    model.lm_head = nn.Sequential(model.lm_head, nn.Tanh())
    return model


class _Louder(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kw: Any) -> Any:
        output = super().forward(*args, **kw)
        output.logits = output.logits * 1.5
        return output


class _SeesWhatFollows(transformers.LlamaForCausalLM):
    """Every token attends to all tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._open, with_kwargs=True)

    @staticmethod
    def _open(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        rows, length = kwargs["input_ids"].shape
        return args, {**kwargs, "attention_mask": torch.ones(rows, 1, length, length, dtype=torch.bool)}


class _NeedsAnImage(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, pixel_values: Any = None, **kw: Any) -> Any:
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        return super().forward(*args, **kw)


def _lora_on_the_head() -> Any:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"])
    return peft.get_peft_model(tiny.llama(), config)


def _prompt_tuning() -> Any:
    return peft.get_peft_model(tiny.llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


INPUTS = [
    BadInput("An encoder-decoder", _served(_t5), r"the encoder-decoder model T5"),
    BadInput("A model without a head", _served(lambda: tiny.llama().model), r"LlamaModel, which has no decoder"),
    BadInput(
        "A classifier",
        _served(lambda: transformers.LlamaForSequenceClassification(_llama_config())),
        r"LlamaForSequenceClassification, which has no output head",
    ),
    BadInput("A head that is no linear layer", _served(_with_another_head), r"a head of type Sequential"),
    BadInput("A prompt-learning adapter", _served(_prompt_tuning), r"the adapter PROMPT_TUNING"),
    BadInput("A LoRA adapter on the head", _served(_lora_on_the_head), r"a LoRA adapter on the head.*`lm_head`"),
    BadInput(
        "`DataParallel` around the model",
        lambda _folder: check_parity(SubsetHead(cast(Any, nn.DataParallel(tiny.llama())), IDS)),
        r"DataParallel.*torchrun",
    ),
    BadInput("Logits that are transformed", _served(lambda: _Louder(_llama_config())), r"difference of .* in _Louder"),
    BadInput(
        "A model that sees what follows",
        _served(lambda: _SeesWhatFollows(_llama_config())),
        r"causal language model; got logits that change with the tokens after them.*_SeesWhatFollows",
    ),
    BadInput(
        "A model that cannot do without an image",
        _served(lambda: _NeedsAnImage(_llama_config())),
        r"plain text.*ValueError from _NeedsAnImage: You have to specify pixel_values",
    ),
    BadInput("A weight that is no number", _served(_not_finite(float("nan"))), r"finite logits.*NaN or infinity"),
    BadInput("A reference that is no number", _reference_of_a_broken_model, r"finite logits.*NaN or infinity"),
    BadInput("A weight that is infinite", _served(_not_finite(float("inf"))), r"finite logits.*NaN or infinity"),
]


class _RunsCode:
    """Would write a file if it were unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def _pickled(file: Path) -> None:
    torch.save({"weight": _RunsCode()}, file)


def _changed(file: str, content: bytes | Callable[[Path], None] | None, kind: Any = AutoModelForCausalLM) -> Any:
    """Loads the tiny model's folder after one of its files was exchanged; None removes it."""

    def act(folder: Path) -> Any:
        path = tiny.save(folder)
        if callable(content):
            (folder / "model.safetensors").unlink()
            content(folder / file)
        elif content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        return pretrained(kind, path, consequence="The model could not be asked.")

    return act


def _config(**content: Any) -> bytes:
    return json.dumps(content).encode()


_UNDER = r"a model and its tokenizer under `.*`; got "

FILES = [
    BadInput(
        "No such model",
        lambda folder: pretrained(AutoModelForCausalLM, str(folder / "none"), consequence="Nothing works."),
        _UNDER + r".*hf auth login",
    ),
    BadInput(
        "No such base model", lambda folder: load_base(str(folder / "none"), "cpu"), r"`pact\.base_model`.*none.*; got"
    ),
    BadInput("A config that is no JSON", _changed("config.json", b"{"), _UNDER + "OSError"),
    BadInput("An empty config", _changed("config.json", b"{}"), _UNDER + "ValueError"),
    BadInput("An unknown type of model", _changed("config.json", _config(model_type="nope")), _UNDER + ".*nope"),
    BadInput(
        "A config with a word in place of a number",
        _changed("config.json", _config(model_type="llama", hidden_size="wide")),
        _UNDER + r"\w+Error.*hidden_size",
    ),
    BadInput("A model for another task", _changed("config.json", _config(model_type="t5")), _UNDER + "ValueError"),
    BadInput(
        "A model that brings its own code",
        _changed("config.json", _config(model_type="own", auto_map={"AutoConfig": "own.C", "AutoModel": "own.M"})),
        _UNDER,
    ),
    BadInput("A model without weights", _changed("model.safetensors", None), _UNDER + "OSError"),
    BadInput("Weights that were cut off", _changed("model.safetensors", b"\x00" * 4), _UNDER + "SafetensorError"),
    BadInput(
        "Weights of another size",
        _changed("config.json", _config(model_type="llama", vocab_size=262, hidden_size=64, num_attention_heads=4)),
        _UNDER + "RuntimeError",
    ),
    BadInput("Weights that would run code", _changed("pytorch_model.bin", _pickled), _UNDER + "UnpicklingError"),
    BadInput("A damaged tokenizer", _changed("tokenizer.json", b"{}", AutoTokenizer), _UNDER),
]
