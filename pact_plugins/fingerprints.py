"""Identities of models, tokenizers and data: equal fingerprints mean that a stored reference still holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from pact_plugins.sharding import full_shape, take_apart, whole

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


def digest(content: Any) -> str:
    """32 hexadecimal digits for anything that JSON can express."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Identity of a tokenizer's vocabulary: the same ids mean the same tokens."""
    return digest(sorted(tokenizer.get_vocab().items()))


def keys_fingerprint(keys: Iterable[bytes]) -> str:
    """Identity of a set of documents, given their content keys in any order."""
    return hashlib.blake2b(b"".join(sorted(set(keys))), digest_size=16).hexdigest()


def model_fingerprint(model: nn.Module) -> str:
    """Identity of the function that the model computes before its first step.

    Every parameter enters with its name, shape, dtype, an exact sum of its bytes and a strided sample of them; beside
    them the model's config (rotary base, norms, ...) and the scale of each adapter. A LoRA pair whose B is zero adds
    nothing to the function, and its random A would make every run a new model: left out. Sharded weights are gathered
    one by one, and have the fingerprint that they have whole.
    """
    take_apart(model)
    parameters = dict(model.named_parameters())
    content = [
        (_canonical(name), str(p.dtype), list(full_shape(p)), *_checksum(p), _adapter_scale(name, model))
        for name, p in parameters.items()
        if not _is_idle_lora(name, parameters)
    ]
    config = getattr(model, "config", None)
    settings = config.to_dict() if isinstance(config, PretrainedConfig) else {}
    return digest([sorted(content), {k: v for k, v in settings.items() if k not in _NOT_OF_THE_FUNCTION}])


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


def _checksum(parameter: Tensor) -> tuple[int, str]:
    """Exact integer sum of the bytes' 16-bit words (order cannot change it), and a hash of a strided sample."""
    with whole([parameter]) as (values,):
        flat = values.detach().contiguous().reshape(-1).view(torch.uint8)
        words = flat.view(torch.int16) if flat.numel() % 2 == 0 else flat
        stride = max(1, words.numel() // (_SAMPLES // words.element_size()))
        sample = words[::stride].cpu().numpy().tobytes()
        return int(words.sum(dtype=torch.int64)), hashlib.blake2b(sample, digest_size=8).hexdigest()
