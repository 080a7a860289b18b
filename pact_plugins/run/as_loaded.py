"""Whether a model is what it was when it was loaded: trained before, under PACT or without, it is no reference."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open
from torch import Tensor
from transformers import Trainer

from pact_plugins.errors import PactError
from pact_plugins.model.adapter import adds
from pact_plugins.model.sharding import is_sharded

logger = logging.getLogger(__name__)

_COMPARED = 2**16
"""Values of each parameter that are compared with its file, at most."""

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
"""Of files and of memory; loading may have gone by way of each."""

_KEEP_THE_BASE = (True, False, "gaussian")
"""Of PEFT's `init_lora_weights`: others change the base's weights to begin with an adapter that adds something."""


_UNDER_PACT = "_pact_has_trained"


def mark_trained(model: Any) -> None:
    """Remembers that the weights of `model`, which trains under PACT, are no reference any more."""
    setattr(model, _UNDER_PACT, True)


def was_prepared(model: Any) -> bool:
    """Whether a trainer has made a model ready to be trained, which stays when that trainer is gone."""
    return bool(getattr(model, "_is_accelerate_prepared", False))  # set by `Accelerator.prepare`


def check_as_loaded(trainer: Any, model: Any, *, prepared: bool = False) -> None:
    """Refuses a model that was trained since it was loaded, as in a notebook that trains it plain first.

    It goes by what is left of that: PACT's own mark, a trainer in this process whose optimiser has moved these
    parameters, weights that differ from their files, where those are on this machine, or an adapter that adds something
    to a model that another trainer was given. Of another adapter that adds something, which may be a first stage's, it
    is warned.

    Args:
        model: its model, unwrapped.
        prepared: whether it was made ready to be trained before this trainer did so (`was_prepared`).

    Raises:
        PactError: the model was trained.
    """
    got = None
    if getattr(model, _UNDER_PACT, False):
        got = "one that another trainer of this process has fine-tuned under PACT"
    elif steps := _steps_of_others(trainer, model):
        got = f"one that another trainer of this process has trained for {steps:,} steps"
    elif _has_stepped(trainer):
        got = "one that this trainer has trained before"
    elif prepared and adds(model):
        got = "one with an adapter that is not empty, which another trainer of this process was given"
    elif (differing := _differing(model)) is not None:
        name, source = differing
        got = f"other weights than those in {source}, from which it was loaded (`{name}` first)"
    if got:
        raise PactError(
            expected="the model as it was before fine-tuning",
            got=got,
            consequence="The fine-tuned weights would be taken for the reference.",
            remedy="Load the original model anew, or go on with the trainer that trained it. Where these weights are "
            "meant as the reference, save them (`model.save_pretrained`) and load them from there.",
        )
    if adds(model):
        logger.warning(
            "PACT: the model begins with an adapter that is not empty. The reference is the model with this adapter: "
            "right for a second stage, and wrong if the adapter was trained without PACT just before."
        )


def _steps_of_others(trainer: Any, model: Any) -> int:
    """Steps in which another trainer's optimiser has moved a parameter of `model`."""
    own = {id(parameter) for parameter in model.parameters()}
    # Not `isinstance`, which asks each object for its `__class__`: lazy modules would be imported.
    others = (o for o in gc.get_objects() if issubclass(type(o), Trainer) and o is not trainer)
    moved = (o for o in others if own & {id(p) for group in _groups(o) for p in group["params"]})
    return max((o.state.global_step for o in moved), default=0)


def _has_stepped(trainer: Any) -> bool:
    """Whether the trainer's own optimiser holds the moments of steps, before the first one."""
    optimizer = getattr(trainer, "optimizer", None)
    optimizer = getattr(optimizer, "optimizer", optimizer)  # within accelerate's
    # DeepSpeed's are none of torch's, and make their moments beforehand.
    return isinstance(optimizer, torch.optim.Optimizer) and bool(optimizer.state)


def _groups(trainer: Any) -> list[dict[str, Any]]:
    return getattr(getattr(trainer, "optimizer", None), "param_groups", [])


def _differing(model: Any) -> tuple[str, str] | None:
    """The first parameter that differs from its file, and where that lies; None if none does as far as is known."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    source = getattr(base.config, "_name_or_path", None)
    folder = _folder(source, getattr(base.config, "_commit_hash", None)) if source else None
    # Of quantised weights only the adapter trains.
    if folder is None or is_sharded(model) or getattr(base, "is_quantized", False):
        return None
    ours = dict(_comparable(model, base))
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in sorted(ours.keys() & set(file.keys())):
                if _differs(ours[name], file.get_slice(name)):
                    return name, str(source)
    return None


def _folder(source: str, commit: str | None) -> Path | None:
    """Where the files of a model lie on this machine, if they do."""
    if Path(source).is_dir():
        return Path(source)
    try:
        found = try_to_load_from_cache(source, "config.json", revision=commit)
    except ValueError:  # no name on the hub
        return None
    return Path(found).parent if isinstance(found, str) else None


def _comparable(model: Any, base: Any) -> Iterator[tuple[str, Tensor]]:
    """Parameters by their names in files: not embeddings, which are resized and filled up before training."""
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    embedding = {id(p) for end in ends if end is not None for p in end.parameters()}
    configs = getattr(model, "peft_config", {}).values()
    base_is_kept = all(getattr(config, "init_lora_weights", True) in _KEEP_THE_BASE for config in configs)
    for name, parameter in base.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "").replace(".original_module.", ".")
        if id(parameter) in embedding or parameter.dtype not in _PRECISIONS or parameter.is_meta:
            continue
        if base_is_kept or ".base_layer." not in name:
            yield name.replace(".base_layer.", "."), parameter


def _differs(parameter: Tensor, stored: Any) -> bool:
    if list(stored.get_shape()) != list(parameter.shape):
        return False
    rows = max(1, _COMPARED // max(1, parameter[0].numel())) if parameter.dim() else None
    there, here = (stored[:rows], parameter.detach()[:rows]) if rows else (stored[...], parameter.detach())
    here = here.cpu()
    return there.dtype in _PRECISIONS and not any(
        torch.equal(there.to(way).to(here.dtype), here) for way in (here.dtype, *_PRECISIONS)
    )
