"""Weights that no process holds whole, of FSDP2 and of DeepSpeed ZeRO-3, read as if they were.

Everything here is a collective operation where weights are sharded: each process has to come by, equally often.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Whether an engine takes the weights of `model` apart between forward passes."""
    # FSDP2 leaves some weights whole for a while, so the parameters would not always tell.
    return any(isinstance(m, FSDPModule) for m in model.modules()) or any(map(_is_partitioned, model.parameters()))


def is_cut(model: nn.Module) -> bool:
    """Whether layers stay cut between processes while they compute (tensor parallelism)."""
    return not is_sharded(model) and any(isinstance(p, DTensor) for p in model.parameters())


def full_shape(parameter: Tensor) -> torch.Size:
    """The shape of the whole parameter."""
    return torch.Size(cast(Any, parameter).ds_shape) if _is_partitioned(parameter) else parameter.shape


@contextmanager
def whole(parameters: Sequence[Tensor]) -> Generator[list[Tensor]]:
    """The parameters within the block, each of its full shape.

    Gradients flow back into those that are at hand whole, or that ZeRO-3 has gathered. Of a sharded `DTensor` the block
    gets a copy without gradient.
    """
    if partitioned := [p for p in parameters if _is_partitioned(p) and cast(Any, p).ds_status.name != "AVAILABLE"]:
        deepspeed: Any = import_module("deepspeed")
        with deepspeed.zero.GatheredParameters(partitioned):
            yield [*parameters]
    else:
        yield [cast(Any, p.detach()).full_tensor() if isinstance(p, DTensor) else p for p in parameters]


def keep_whole(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Has ZeRO-3 hold the parameters whole for as long as `model` runs, forwards and backwards.

    To be called before the first forward pass, whose order of gathering it remembers.
    """
    for parameter in filter(_is_partitioned, parameters):
        import_module("deepspeed").zero.register_external_parameter(model, parameter)


def take_apart(model: nn.Module) -> None:
    """Has FSDP2 free what it still holds whole, often in another precision, after a forward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def last_logits(model: nn.Module, **inputs: Any) -> Tensor:
    """[B, V] logits of the last column of a batch, through the outermost module, whose hooks gather the weights."""
    inner = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    return model(**inputs, **last).logits[:, -1]


@contextmanager
def generating(model: nn.Module) -> Generator[dict[str, Any]]:
    """Readies `model.generate` within the block; yields the arguments that it needs.

    PEFT's `generate` calls the model inside, so that FSDP2 would not see the outermost module run.
    """
    if not is_sharded(model):
        yield {}
        return
    around = isinstance(model, FSDPModule) and hasattr(model, "get_base_model")
    if around:
        register_fsdp_forward_method(model, "generate")
    try:
        # No process may stop asking for weights before the last one has written its answers.
        yield {"synced_gpus": torch.distributed.get_world_size() > 1}
    finally:
        if around:
            del model.generate


def _is_partitioned(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id")
