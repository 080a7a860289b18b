"""Identities of models: equal fingerprints mean that a stored reference still holds."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PretrainedConfig

from pact_plugins.chat.fingerprints import digest
from pact_plugins.model.adapter import own_parameters
from pact_plugins.model.sharding import full_shape, take_apart, whole

_SAMPLES = 4096
"""Bytes of each parameter that are hashed in place; the rest enters through an exact checksum."""

_NOT_OF_THE_FUNCTION = {
    "_name_or_path",
    "architectures",
    "dtype",
    "quantization_config",
    "transformers_version",
    "use_cache",
}
"""Settings of a model's config that say where it comes from or how it runs. The weights show their own precision."""

_ORIGIN = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
"""The like in an adapter's config."""


def model_fingerprint(model: nn.Module, *, adapter: bool = True) -> str:
    """Identity of the function that the model computes before its first step.

    Every parameter enters with its name, shape, dtype, a sum of its bytes and a strided sample of them; beside
    them the model's config (rotary base, norms, ...) and the scale of each adapter. A LoRA pair whose B is zero adds
    nothing to the function, and its random A would make every run a new model: left out. Sharded weights are gathered
    one by one, and have the fingerprint that they have whole. Without its `adapter`, a model that has one has the
    fingerprint of what is left: of one whose LoRA adds nothing yet it is the same.
    """
    take_apart(model)
    parameters = dict(model.named_parameters()) if adapter else own_parameters(model)
    content = [
        (_canonical(name), str(p.dtype), list(full_shape(p)), *_checksums(p), _adapter_scale(name, model))
        for name, p in parameters.items()
        if not _is_idle_lora(name, parameters)
    ]
    content += _scales(model)
    config = getattr(model, "config", None)
    settings = config.to_dict() if isinstance(config, PretrainedConfig) else {}
    about = {k: v for k, v in settings.items() if k not in _NOT_OF_THE_FUNCTION}
    return digest([sorted(content), about, *(_other_adapters(model) if adapter else ())])


def _scales(model: nn.Module) -> list[tuple[Any, ...]]:
    """The scales of 4-bit and 8-bit weights, which are no parameters: bitsandbytes keeps them beside the codes."""
    found: list[tuple[Any, ...]] = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        codes = getattr(weight, "quant_state", None)
        eight_bit = getattr(weight, "SCB", None)
        if eight_bit is None:  # after its first forward pass, the layer has them
            eight_bit = getattr(getattr(module, "state", None), "SCB", None)
        nested = getattr(codes, "state2", None)
        parts = (getattr(codes, "absmax", None), getattr(nested, "absmax", None), eight_bit)
        found += [(_canonical(f"{name}."), i, *checksum(p)) for i, p in enumerate(parts) if isinstance(p, Tensor)]
    return found


def _other_adapters(model: nn.Module) -> list[Any]:
    """What the parameters leave open: settings of adapters other than LoRA, and which adapter is active.

    The only adapter of a model, if it is LoRA, needs neither.
    """
    adapters: dict[str, Any] = getattr(model, "peft_config", {})
    if len(adapters) < 2 and all(config.peft_type == "LORA" for config in adapters.values()):
        return []
    described = {
        name: {k: str(sorted(v) if isinstance(v, set) else v) for k, v in config.to_dict().items() if k not in _ORIGIN}
        for name, config in adapters.items()
        if config.peft_type != "LORA"
    }
    return [described, list(cast(Any, model).active_adapters)]


def _adapter_scale(name: str, model: nn.Module) -> list[float]:
    """What PEFT multiplies each adapter of this layer by, 0 if it is not active; nothing for the model's own layers."""
    owner, is_adapter, _ = name.partition(".lora_")
    if not is_adapter:
        return []
    layer: Any = model.get_submodule(owner)
    return [float(layer.scaling[a]) * (a in layer.active_adapters) for a in sorted(layer.scaling)]


def _is_idle_lora(name: str, parameters: dict[str, nn.Parameter]) -> bool:
    for a, b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
        if f".{a}." in name or f".{b}." in name:
            partner = parameters.get(name.replace(f".{a}.", f".{b}."))
            if partner is None:
                return False
            with whole([partner]) as (values,):
                return not bool(values.detach().any())
    return False


def _canonical(name: str) -> str:
    """A parameter's name without the wrappers around an unchanged layer, PEFT's and those of checkpointing."""
    name = name.replace("_checkpoint_wrapped_module.", "")
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _checksums(parameter: Tensor) -> list[Any]:
    with whole([parameter]) as (values,):
        return _checksums_of(values.detach())


def _checksums_of(values: Tensor) -> list[Any]:
    """Of a tensor; of the tensors that one holds which is only a view of others, such as torchao's codes and scales."""
    if not is_traceable_wrapper_subclass(values):
        return list(checksum(values))
    held = values.__tensor_flatten__()[0]
    return [each for name in held for each in _checksums_of(getattr(values, name))]


def checksum(values: Tensor) -> tuple[int, str]:
    """Sum of the bytes' 64-bit words, modulo 2 ** 64 (order cannot change it), and a hash of a strided sample."""
    flat = values.contiguous().reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8:  # a part of a larger buffer
        flat = flat.clone()
    words = flat.view(torch.int64 if flat.numel() % 8 == 0 else torch.int16 if flat.numel() % 2 == 0 else torch.uint8)
    stride = max(1, words.numel() // (_SAMPLES // words.element_size()))
    sample = words[::stride].cpu().numpy().tobytes()
    return int(words.sum(dtype=torch.int64)), hashlib.blake2b(sample, digest_size=8).hexdigest()
