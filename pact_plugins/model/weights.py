"""Which weights a run left: fingerprints of them in memory, as they will be saved, and of the files that hold them.

Both are read tensor by tensor, by name, shape and checksum of the values. Hosts save weights as they are or in another
precision: what is in memory has a fingerprint in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pact_plugins.chat.fingerprints import digest
from pact_plugins.errors import PactError
from pact_plugins.model.fingerprints import checksum
from pact_plugins.model.loading import ACCESS, LanguageModel, pretrained
from pact_plugins.model.sharding import whole

ADAPTER, FULL = "adapter_model.safetensors", "model.safetensors"
"""Files of weights; the second stands for its parts, too."""

_PRECISIONS = (None, torch.float32, torch.bfloat16, torch.float16)
"""In which weights may be saved; None for the one that each has."""


def to_be_saved(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that `save_pretrained` would write, by the names that they have in its files.

    Those of the adapter, where there is one.
    """
    adapted = hasattr(model, "peft_config")
    # PEFT saves weights that are tied under each of their names, and buffers.
    named = dict(model.named_parameters(remove_duplicate=not adapted))
    if adapted:
        kept = model.state_dict().keys()
        named |= {name: b for name, b in model.named_buffers(remove_duplicate=False) if name in kept}
    tensors = {n.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", ""): t for n, t in named.items()}
    if adapted:
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(cast(Any, model), state_dict=tensors)
    from transformers.core_model_loading import revert_weight_conversion

    return revert_weight_conversion(cast(Any, model), cast(Any, tensors))


def fingerprints(model: nn.Module) -> list[str]:
    """Of the weights that `model` has now, in each precision; of all processes together where they are sharded."""
    found: dict[torch.dtype | None, list[Any]] = {precision: [] for precision in _PRECISIONS}
    for name, parameter in sorted(to_be_saved(model).items()):
        with whole([parameter]) as (values,):
            own = values.dtype
            cast_to = {p: p if p and values.is_floating_point() else own for p in _PRECISIONS}
            sums = {precision: checksum(values.detach().to(precision)) for precision in {*cast_to.values()}}
            for precision, content in found.items():
                content.append((name, list(values.shape), *sums[cast_to[precision]]))
    return sorted({digest(content) for content in found.values()})


def in_files(folder: Path) -> dict[str, str]:
    """The fingerprint of the weights in `folder`, by the file that holds them.

    Raises:
        PactError: a file is damaged.
    """
    found = {}
    for name, pattern in ((ADAPTER, ADAPTER), (FULL, "model*.safetensors")):
        content = [(key, list(t.shape), *checksum(t)) for key, t in _tensors(folder, pattern)]
        # Axolotl also leaves the model below the adapter of a DPO run, with the adapter's layers in it.
        if content and not any(".base_layer." in key for key, *_ in content):
            found[name] = digest(sorted(content))
    return found


def _tensors(folder: Path, pattern: str) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(folder.glob(pattern)):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no mapping)
                    yield key, file.get_tensor(key)
        except Exception as error:  # safetensors has errors of its own
            raise PactError(
                expected=f"weights in {path}",
                got=f"{type(error).__name__}: {error}",
                consequence="It cannot be told whose they are.",
                remedy="Copy the file again, or use a checkpoint before it.",
            ) from error


def merged_otherwise(run: Path, base: str, merged: Path) -> str | None:
    """What in `merged` is not the run's adapter merged into the model `base`, but for rounding; None if all of it is.

    Two merges a and b of one adapter into weights w may round w, the change and the sum, each in the merged weights'
    precision or a finer one: |a - b| <= 2 * epsilon * (|a| + |w|).

    Raises:
        PactError: one of the three cannot be loaded.
    """
    from peft import PeftModel

    consequence = "It cannot be told whether the merged weights are this run's."
    found = dict(_tensors(merged, "model*.safetensors"))
    if not found:
        return f"{merged} holds no {FULL}"
    precision = next(iter(found.values())).dtype
    model = pretrained(LanguageModel, base, consequence=consequence, remedy=ACCESS, dtype=precision)
    before = {name: values.detach().clone() for name, values in to_be_saved(model).items()}
    after = to_be_saved(cast(Any, PeftModel.from_pretrained(model, str(run))).merge_and_unload())
    if missing := sorted(after.keys() - found.keys()):
        return f"{missing[0]} is missing"
    for name, values in after.items():
        w, a, b = before.get(name, values).float(), values.detach().float(), found[name].float()
        if a.shape != b.shape or ((a - b).abs() > 2 * torch.finfo(precision).eps * (a.abs() + w.abs())).any():
            return f"{name} has other values"
    return None
