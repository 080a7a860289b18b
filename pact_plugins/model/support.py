"""Which models PACT can serve, and where the parts are that it reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from pact_plugins.errors import PactError
from pact_plugins.model.sharding import full_shape

logger = logging.getLogger(__name__)

_ADAPTERS = {"lora": "LoRA", "ia3": "IA3"}
"""How people write the names of PEFT's modules."""

_IN_TWO_PASSES = ("XLORA", "POLY")
"""Adapters, in PEFT's words, that run the decoder twice in a forward pass, or ask for the number of a task."""


def underlying(model: nn.Module) -> Any:
    """The transformers model inside a PEFT model; any other model is its own."""
    return cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(base: Any) -> Any:
    """The module of a transformers model whose output is the last hidden state; None if there is none.

    Some models answer `get_decoder` with themselves or with their head, and hold the decoder as `model`.
    """
    if not callable(getattr(base, "get_decoder", None)):
        return None
    found = base.get_decoder()
    if found is None or found is base or found is base.get_output_embeddings():
        found = getattr(base, "model", None)
    return found if isinstance(found, nn.Module) else None


def last_hidden(output: Any) -> Tensor:
    """[B, L, H] the last hidden states in what a decoder returns."""
    return cast(Tensor, output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0])


def adapters_of(model: nn.Module) -> str:
    """The kinds of the adapters of a PEFT model, in PEFT's own words; empty of any other model."""
    kinds = (adapter.peft_type for adapter in cast(Any, getattr(model, "peft_config", {})).values())
    return " and ".join(dict.fromkeys(str(getattr(kind, "value", kind)) for kind in kinds))


def wakes_at(model: nn.Module) -> list[int]:
    """The tokens at whose last occurrence in a row its adapter begins to act (aLoRA); empty if it does everywhere.

    Where they are, only the outermost module's forward pass looks up.
    """
    return list(getattr(getattr(model, "active_peft_config", None), "alora_invocation_tokens", None) or ())


def _error(got: str, consequence: str, remedy: str) -> PactError:
    expected = "a causal language model with a decoder and a plain linear head"
    return PactError(expected=expected, got=got, consequence=consequence, remedy=remedy)


def unsupported_adapter(kind: str) -> PactError:
    """The error that an adapter of this kind is."""
    return _error(
        f"the adapter {kind}",
        "Virtual tokens shift every position, and the loss would sit on the wrong tokens; others were not tried.",
        "Use LoRA, QLoRA or full fine-tuning.",
    )


def adapter_on_the_head(kind: str) -> PactError:
    """The error that an adapter of this kind is on the head."""
    return _error(
        f"a {kind} adapter on the head",
        "PACT would hold the head's weights without the adapter's part, and drift unseen.",
        "Take `lm_head` out of the adapter's target modules, or train it whole (`modules_to_save`).",
    )


def check_supported(model: nn.Module) -> None:
    """Refuses, before training, the models whose safety logits cannot be read from the last hidden state.

    Raises:
        PactError: the model is wrapped in `DataParallel`, is an encoder-decoder, has an adapter of virtual tokens, or
            one that PEFT cannot checkpoint, no decoder, no linear head, a quantised head, or an adapter on its head.
    """
    base = underlying(model)

    name = type(base).__name__
    if isinstance(model, nn.DataParallel):
        raise _error(
            "torch.nn.DataParallel", "Its replicas run in threads that PACT cannot follow.", "Use torchrun (DDP)."
        )
    if getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        raise _error(
            f"the encoder-decoder model {name}", "Answers would not follow prompts.", "Use a decoder-only chat model."
        )
    for adapter in cast(Any, getattr(model, "peft_config", {})).values():
        if adapter.is_prompt_learning or adapter.is_adaption_prompt or adapter.peft_type.value in _IN_TWO_PASSES:
            raise unsupported_adapter(adapter.peft_type.value)
    if wakes_at(model) and any(getattr(m, "gradient_checkpointing", False) for m in base.modules()):
        raise _error(
            "an aLoRA adapter under gradient checkpointing",
            "PEFT then allows one forward pass before each backward pass, and PACT makes more.",
            "Set `gradient_checkpointing: false`, or use LoRA.",
        )
    if decoder_of(base) is None:
        raise _error(
            f"{name}, which has no decoder", "Its hidden states cannot be seen.", "Use a causal language model."
        )
    head = base.get_output_embeddings()
    if head is None:
        raise _error(f"{name}, which has no output head", "There are no logits to hold.", "Use a model for causal LM.")
    if hasattr(head, "base_layer"):
        kind = type(head).__module__.split(".")[-2]
        raise adapter_on_the_head(_ADAPTERS.get(kind, kind))
    head = trained_module(head)
    if not isinstance(head, nn.Linear | nn.Embedding) or len(full_shape(head.weight)) != 2:
        raise _error(
            f"a head of type {type(head).__name__} in {name}",
            "Its logits are no plain matrix product.",
            "Use a model whose head is a linear layer.",
        )
    if not head.weight.is_floating_point():
        raise _error(
            f"a quantised head in {name}",
            "PACT reads its weights, and would read codes.",
            "Leave the head out of the quantisation (`llm_int8_skip_modules=['lm_head']`).",
        )


def check_ids(model: nn.Module, sequences: Iterable[Sequence[int] | npt.NDArray[np.int64]], what: str) -> None:
    """Refuses token ids that the model has no embedding for; `what` says where they come from.

    An embedding that is larger than the tokenizer is common, and a tokenizer that is larger than the embedding harmless
    as long as the tokens beyond it do not occur.
    """
    vocabulary = full_shape(underlying(model).get_input_embeddings().weight)[0]
    for ids in sequences:
        least, most = (int(np.min(ids)), int(np.max(ids))) if len(ids) else (0, 0)
        if least < 0 or most >= vocabulary:
            raise PactError(
                expected=f"token ids from 0 to {vocabulary - 1:,}, which this model has embeddings for",
                got=f"{least if least < 0 else most} in {what}",
                consequence="The model cannot read that token; a GPU would only report a failed assertion.",
                remedy="Use the tokenizer that belongs to this model, or resize the model's embeddings to it "
                "(`resize_token_embeddings`) before the trainer is made.",
            )


def check_lengths(model: nn.Module, lengths: Sequence[int]) -> None:
    """Refuses training sequences with more tokens than the model has learned positions.

    Rotary positions have no end, so there it is a warning.
    """
    base = underlying(model)
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    longest = max(lengths, default=0)
    if not isinstance(limit, int) or longest <= limit:
        return
    tokens = base.get_input_embeddings()
    # OPT and its kin have two rows more than positions.
    learned = [m for m in decoder_of(base).modules() if isinstance(m, nn.Embedding) and m is not tokens]
    if any(limit <= positions.num_embeddings <= limit + 2 for positions in learned):
        raise PactError(
            expected=f"training sequences of at most {limit:,} tokens, the model's positions",
            got=f"one of {longest:,} tokens",
            consequence="The model has no such position; a GPU would only report a failed assertion.",
            remedy=f"Set `max_length`/`sequence_len` to {limit} or less.",
        )
    logger.warning(
        "PACT: %s of %s training sequences are longer than the %s positions that the model was made for, the longest "
        "%s: both the reference and the training may be poor beyond them (`max_length`/`sequence_len`).",
        *(f"{n:,}" for n in (sum(length > limit for length in lengths), len(lengths), limit, longest)),
    )


def trained_module(head: Any) -> Any:
    """The module that computes, where PEFT wraps the head (`modules_to_save`): the trained copy, or the original.

    Of a head that shares trained tokens with the embedding it is the original (see `with_trained_tokens`).
    """
    if hasattr(head, "token_adapter"):
        return head.original_module
    copies = getattr(head, "modules_to_save", None)
    if copies is None:
        return head
    active = [] if head.disable_adapters else [name for name in head.active_adapters if name in copies]
    return copies[active[0]] if active else head.original_module


def with_trained_tokens(head: Any) -> Tensor | None:
    """The weight with which a head computes that shares trained tokens with the embedding; None of any other head."""
    tokens = getattr(head, "token_adapter", None)
    if tokens is None or head.disable_adapters or tokens.merged:
        return None
    return cast(Tensor, tokens.get_merged_weights(head.active_adapters))
