"""Whether what the subset head reads is what the model says, seen on one short sequence before the first step.

Models may transform their logits, or what goes into the head, in ways that PACT does not know: then this is where a run
stops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pact_plugins.errors import PactError
from pact_plugins.model.forward import evaluating
from pact_plugins.model.sharding import full_shape
from pact_plugins.model.subset_head import Capture, Request, SubsetHead

LENGTH = 8
"""Tokens of the sequence."""

TOLERANCE = 2e-2
"""Largest accepted difference between subset logits and the model's own, relative to the largest logit."""


def check_parity(head: SubsetHead) -> None:
    """Compares logits and log-normalisers with the model's own, without labels and with them; then the reference pass.

    Raises:
        PactError: the model's are not finite; or they differ, so this model transforms its logits in a way that PACT
            does not know; or the logits of a token depend on what comes after it.
    """
    kind, device = type(head.base).__name__, next(head.model.parameters()).device
    # Any ids do; spread over the vocabulary, they make large and small logits.
    vocabulary = min(full_shape(head.base.get_input_embeddings().weight)[0], head.vocabulary)
    input_ids = torch.linspace(1, vocabulary - 1, LENGTH, device=device).long().unsqueeze(0)
    logits, captures = _run(head, input_ids)
    scale = logits.abs().max().item()
    if not math.isfinite(scale):
        raise PactError(
            expected="finite logits from the model before its first step",
            got=f"NaN or infinity from {kind}",
            consequence="There would be no reference to hold the model to.",
            remedy="Check the weights and the precision of the model; bfloat16 is safer than float16.",
        )
    subset, tolerance = logits[:, head.ids.to(device)], TOLERANCE * max(scale, 1.0)
    error = 0.0
    for capture in captures:
        assert capture.log_normaliser is not None, "the request asks for it"
        for own, found in ((subset, capture.logits), (logits.logsumexp(-1), capture.log_normaliser)):
            error = max(error, (own - found).abs().max().item())
    if not error <= tolerance:
        raise PactError(
            expected="the logits of the safety tokens to be the head's product with the last hidden state",
            got=f"a difference of {error:.3g} beside logits of up to {scale:.3g} in {kind}",
            consequence="PACT would hold the wrong quantity.",
            remedy="This model transforms its logits in a way that is not supported yet; please report its type.",
        )
    _check_reference_pass(head, input_ids, subset, tolerance)


def _run(head: SubsetHead, input_ids: Tensor) -> tuple[Tensor, list[Capture]]:
    """[L - 1, V] the model's own logits, and what the head captured, without labels and with them."""
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "use_cache": False}
    request = Request(torch.arange(LENGTH - 1, device=input_ids.device), input_ids[0, 1:], normalise=True)
    try:
        with evaluating(head.model):
            with head.watch(request) as captures:
                logits = head.model(**inputs).logits[0, :-1].float()
            with head.watch(request) as labelled:
                head.model(**inputs, labels=input_ids)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise PactError(
            expected=f"a model that can be given {LENGTH} tokens of plain text, and labels",
            got=f"{type(error).__name__} from {type(head.base).__name__}: {error}",
            consequence="The reference is computed on plain text.",
            remedy="Use a model for causal language modelling.",
        ) from error
    return logits, [head.one(captures), head.one(labelled)]


def _check_reference_pass(head: SubsetHead, input_ids: Tensor, logits: Tensor, tolerance: float) -> None:
    """Compares a pass of the decoder alone, as the reference is computed, with the model's `logits` [L - 1, S]."""
    half = LENGTH // 2
    changed = torch.cat([input_ids[:, :half], input_ids[:, :half]], 1)
    rows = torch.cat([input_ids, changed])
    flat = torch.arange(LENGTH + half, device=rows.device)
    flat = flat[flat != LENGTH - 1]
    with evaluating(head.model), head.watch(Request(flat, rows.flatten()[flat + 1])) as captures:
        head.decode(rows, torch.ones_like(rows))
    alone, before = head.one(captures).logits.split([LENGTH - 1, half])
    for own, found, expected, got in (
        (logits, alone, "the decoder alone to give what it gives within the model", "other hidden states"),
        (alone[:half], before, "a causal language model", "logits that change with the tokens after them"),
    ):
        # The median token: in half precision, rounding may send a single one to another expert.
        if not (error := (own - found).abs().amax(-1).median().item()) <= tolerance:
            raise PactError(
                expected=expected,
                got=f"{got}, by {error:.3g}, in {type(head.base).__name__}",
                consequence="The reference, which is computed without what follows an answer, would be another.",
                remedy="Use a decoder-only chat model.",
            )
