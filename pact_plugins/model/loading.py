"""Models and tokenizers from a folder or the hub, with errors that say what was wrong. Precision is the caller's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils.peft_utils import find_adapter_config_file

from pact_plugins.errors import PactError

ACCESS = (
    "Check the path; for a model on the hub the network and, if it is gated, that you have been given access and are "
    "logged in (`hf auth login`)."
)


class LanguageModel:
    """An auto class like those of transformers: of causal language models, and of those that see images as well.

    A checkpoint that sees images is loaded whole, as TRL and Axolotl load it: `AutoModelForCausalLM` refuses it or
    leaves its other parts out, and another model than the run's would answer.
    """

    @staticmethod
    def from_pretrained(name: str, **options: Any) -> Any:
        """The model of the class that its config names; of an adapter, its base is loaded as well."""
        adapter = find_adapter_config_file(name)
        base = json.loads(Path(adapter).read_text())["base_model_name_or_path"] if adapter else name
        named = (AutoConfig.from_pretrained(base).architectures or [None])[0]
        sees_images = named in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values()
        kind = AutoModelForImageTextToText if sees_images else AutoModelForCausalLM
        return kind.from_pretrained(name, **options)


def pretrained(
    kind: Any, name: str, *, consequence: str, expected: str | None = None, remedy: str = ACCESS, **options: Any
) -> Any:
    """What `kind.from_pretrained(name, **options)` gives.

    Args:
        kind: an auto class of transformers: of a model, a tokenizer or a config.
        expected: what should have been there; a model and its tokenizer if not given.

    Raises:
        PactError: nothing is there, it needs access, it is of another kind or damaged, or a package that it needs is
            missing.
    """
    try:
        return kind.from_pretrained(name, **options)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the hub's client, transformers and each file format raise their own
        raise PactError(
            expected=expected or f"a model and its tokenizer under `{name}`",
            got=f"{type(error).__name__}: {error}",
            consequence=consequence,
            remedy=remedy,
        ) from error
