"""Models, tokenizers and adapters that are evaluated or judge: where they run, in which precision, and whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from pact_plugins.errors import PactError, required
from pact_plugins.model.loading import LanguageModel, pretrained

_CONSEQUENCE = "Nothing could be measured."


def config_and_tokenizer(name: str) -> tuple[Any, Any]:
    """Config and tokenizer of a model: without its weights, and enough to see whether it is there and may be read.

    Raises:
        PactError: the model cannot be found, or needs access.
    """
    return pretrained(AutoConfig, name, consequence=_CONSEQUENCE), load_tokenizer(name)


def load_tokenizer(name: str) -> Any:
    """A tokenizer alone: an adapter's folder has no config.

    Raises:
        PactError: it cannot be found, or needs access.
    """
    return pretrained(AutoTokenizer, name, consequence=_CONSEQUENCE)


def load_model(name: str, kind: Any = LanguageModel, *, on_cpu: bool = False) -> Any:
    """A model: on the GPUs in the precision it was saved in, else on the CPU in float32.

    CPUs are slow in half precision, and answers should not hang on its rounding where there is no need.

    Args:
        name: a folder, or a name on the hub; of an adapter, its base is loaded as well.
        kind: the auto class that loads it.
        on_cpu: on the CPU in any case, in the precision it was saved in: to be looked at, not to be run.

    Raises:
        PactError: the model cannot be found, needs access, or is of another kind.
    """
    options: dict[str, Any] = {"dtype": torch.float32}
    if on_cpu or torch.cuda.is_available():
        options = {"dtype": "auto"} if on_cpu else {"dtype": "auto", "device_map": "auto"}
    return pretrained(kind, name, consequence=_CONSEQUENCE, **options)


def with_adapter(model: Any, adapter: str) -> Any:
    """The model with a PEFT adapter on top, all of whose weights have found their place.

    Args:
        model: the model that the adapter was trained on.

    Raises:
        PactError: PEFT is not installed, there is no adapter there, or it belongs to another model.
    """
    required("peft", "trl", "an adapter")
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import CONFIG_NAME
    from peft.utils.save_and_load import load_peft_weights

    if Path(adapter).is_dir() and not (Path(adapter) / CONFIG_NAME).exists():  # PEFT would ask the hub, again and again
        raise _no_adapter(adapter, model, f"a folder without {CONFIG_NAME}")
    try:
        adapted = PeftModel.from_pretrained(model, adapter)
        saved = set(load_peft_weights(adapter, device="cpu"))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the hub's client, PEFT and each file format raise their own
        raise _no_adapter(adapter, model, f"{type(error).__name__}: {error}") from error
    # PEFT only warns of these, and leaves the layers as they were: the adapter would be evaluated in part.
    present = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    astray = sorted(present - saved) + sorted(key for key in saved - present if ".lora_" in key)
    if astray:
        raise _no_adapter(adapter, model, f"{len(astray)} weights without a counterpart, {astray[0]} first")
    return adapted


def lora_rank(adapted: Any) -> int:
    """The largest rank of a model's LoRA adapter.

    Raises:
        PactError: the adapter is of another kind, which vLLM does not know.
    """
    ranks: list[int] = [max([c.r, *c.rank_pattern.values()]) for c in adapted.peft_config.values() if hasattr(c, "r")]
    if not ranks:
        raise PactError(
            expected="a LoRA adapter",
            got=", ".join(str(c.peft_type) for c in adapted.peft_config.values()),
            consequence="vLLM could not apply it.",
            remedy="Use `--engine transformers`.",
        )
    return max(ranks)


def base_of(adapter: str) -> str | None:
    """The model that the adapter says it was trained on: a hint, since folders move and names change."""
    from peft import PeftConfig

    return PeftConfig.from_pretrained(adapter).base_model_name_or_path


def _no_adapter(adapter: str, model: Any, got: str) -> PactError:
    try:
        base = base_of(adapter)
    except Exception:  # there is no readable adapter at all, which `got` says
        base = None
    return PactError(
        expected=f"an adapter under `{adapter}` that was trained on the model `{model.config.name_or_path}`",
        got=got,
        consequence="Another model than the fine-tuned one would have been measured.",
        remedy=(f"It says that it was trained on `{base}`. " if base else "") + "Check both paths.",
    )
