"""A model whose adapter is taken off: what it was before its first step, if the adapter began with nothing."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from pact_plugins.model.sharding import is_sharded

WHOLE = "weights that are trained whole"
"""What a run trains that has no adapter to be taken off."""

RELORA = "ReLoRA, which adds its adapter to the model's weights while it trains"

EMPTY = (True, "gaussian", "eva")
"""Of PEFT's `init_lora_weights`: an adapter that adds nothing before its first step."""

_COPIES = (".modules_to_save.", ".trainable_tokens_")
"""In names of what PEFT trains in place of the model's own weights, which it keeps."""


def adds(model: nn.Module) -> bool:
    """Whether a LoRA adapter adds something to its model."""
    if not hasattr(model, "peft_config") or is_sharded(model):
        return False
    return any(bool(p.detach().any()) for name, p in model.named_parameters() if ".lora_B." in name)


def adding(init: Any = None) -> str:
    """Such an adapter in words; `init` is its `init_lora_weights`."""
    return "an adapter that adds something from the start" + f" (`init_lora_weights: {init}`)" * isinstance(init, str)


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a PEFT model has without its adapter, by their names in it."""
    marks = (cast(Any, model).base_model.prefix, *_COPIES)
    return {name: p for name, p in model.named_parameters() if not any(mark in name for mark in marks)}


def lost(model: nn.Module) -> str:
    """What keeps a model, with its adapter taken off, from being what it is before its first step, if anything does."""
    if not hasattr(getattr(model, "base_model", None), "prefix"):  # of PEFT's adapters within the layers
        return WHOLE
    if adds(model):
        return adding(next(iter(cast(Any, model).peft_config.values())).to_dict().get("init_lora_weights"))
    trained = [name for name, p in own_parameters(model).items() if p.requires_grad]
    return f"weights of the model that are trained beside its adapter (`{trained[0]}`)" if trained else ""


@contextmanager
def taken_off(model: nn.Module) -> Generator[None]:
    """The model without its adapter within the block.

    As PEFT's `disable_adapter`, which besides has all of an adapter trained afterwards, whatever of it was frozen, and
    takes longer than a step can spare. That PEFT's layers go by it is tried before the first step (`check_taken_off`).
    """
    layers: list[Any] = [layer for layer in model.modules() if hasattr(type(layer), "disable_adapters")]
    before = [layer.disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was
