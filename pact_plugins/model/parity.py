"""Whether what the subset head reads is what the model says, seen on one short sequence before the first step.

Models may transform their logits, or what goes into the head, in ways that PACT does not know: then this is where a run
stops.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pact_plugins.errors import PactError
from pact_plugins.model.adapter import taken_off
from pact_plugins.model.forward import evaluating
from pact_plugins.model.sharding import full_shape, is_sharded
from pact_plugins.model.subset_head import Capture, Request, SubsetHead
from pact_plugins.model.support import adapters_of, wakes_at

LENGTH = 8
"""Tokens of the sequence, beside those that an adapter waits for."""

TOLERANCE = 2e-2
"""Largest accepted difference between subset logits and the model's own, relative to the largest logit."""

STRIDE = 0.1
"""Standard deviation of what is added to an adapter, as if it had been trained."""

LEFT_OUT = 0.25
"""Largest accepted difference then, relative to what that adds to logits: of a pass without the adapter it is about 1.
Chance makes of a model what it makes of rounding in half precision, a few hundredths."""


def check_parity(head: SubsetHead) -> None:
    """Compares logits and log-normalisers with the model's own, without labels and with them; then the reference pass.

    Of a model with an adapter, which most often begins without a part in anything, once more as if it had been trained.
    Its parameters are given back their values, bit for bit.

    Raises:
        PactError: the model's are not finite; or they differ, so this model transforms its logits in a way that PACT
            does not know; or the logits of a token depend on what comes after it.
    """
    input_ids = _sequence(head)
    logits, captures = _run(head, input_ids)
    if not logits.isfinite().all():
        raise PactError(
            expected="finite logits from the model before its first step",
            got=f"NaN or infinity from {type(head.base).__name__}",
            consequence="There would be no reference to hold the model to.",
            remedy="Check the weights and the precision of the model; bfloat16 is safer than float16.",
        )
    tolerance = TOLERANCE * max(logits.abs().max().item(), 1.0)
    _compare(head, input_ids, logits, captures, tolerance)
    # Sharded weights are no process's to change, and PACT's own passes go through the whole model there.
    if not (adapters := adapters_of(head.model)) or is_sharded(head.model):
        return
    with _trained(head.model):
        trained, captures = _run(head, input_ids)
        if not trained.isfinite().all():
            return  # half precision may not hold what chance makes of it: nothing to compare
        added = (trained - logits)[:, head.ids.to(logits.device)].abs().amax(-1).median().item()
        try:
            _compare(head, input_ids, trained, captures, max(tolerance, LEFT_OUT * added))
        except PactError as error:
            raise PactError(
                expected="an adapter that takes part in PACT's own forward passes as in those of training",
                got=f"{error.got}, once the adapter {adapters} is trained",
                consequence="What is held would leave the adapter's part out, and drift would go unseen.",
                remedy="Use LoRA, QLoRA or full fine-tuning; please report this adapter.",
            ) from error


def check_taken_off(head: SubsetHead, *, trained: bool) -> None:
    """Whether the model with its adapter taken off is what it is before its first step, and stays that.

    Args:
        head: of a PEFT model.
        trained: whether the adapter has been trained, so that only the second can be seen.

    Raises:
        PactError: the adapter adds something from the start, or something of it stays.
    """
    input_ids = _sequence(head)
    logits, _ = _run(head, input_ids)
    with taken_off(head.model):
        before, _ = _run(head, input_ids)
    with _trained(head.model), taken_off(head.model):
        after, _ = _run(head, input_ids)
    scale = max(before.abs().max().item(), 1.0)
    for other, when in ((before if trained else logits, "from the start"), (after, "once the adapter is trained")):
        if not (error := (before - other).abs().max().item()) <= TOLERANCE * scale:
            raise PactError(
                expected="a model that is, with its adapter taken off, what it is before its first step",
                got=f"another by {error:.3g} beside logits of up to {scale:.3g}, {when} ({adapters_of(head.model)})",
                consequence="The reference of a data set that streams is computed so, and would be another model's.",
                remedy="Use LoRA that adds nothing from the start, or load the data set whole (`streaming: false`).",
            )


def _sequence(head: SubsetHead) -> Tensor:
    """[1, L] ids. Any do; spread over the vocabulary, they make large and small logits."""
    vocabulary = min(full_shape(head.base.get_input_embeddings().weight)[0], head.vocabulary)
    ids = torch.linspace(1, vocabulary - 1, LENGTH).long()
    if awaited := wakes_at(head.model):
        # Most of the sequence behind them, and none in the half that `_check_reference_pass` repeats.
        ids = torch.cat([ids[: LENGTH // 2], torch.tensor(awaited), ids])
    return ids.unsqueeze(0).to(next(head.model.parameters()).device)


@contextmanager
def _trained(model: nn.Module) -> Generator[None]:
    """The adapter within the block as training might leave it: away from where it began, the same in every process."""
    # Whole copies of the model's own modules may be large, and no adapter acts through them.
    own = [p for name, p in model.named_parameters() if p.requires_grad and ".modules_to_save." not in name]
    kept = [p.detach().clone() for p in own]
    try:
        for seed, parameter in enumerate(own):
            # A generator of its own: no random number of the run is drawn.
            generator = torch.Generator(parameter.device).manual_seed(seed)
            noise: dict[str, Any] = {"device": parameter.device, "dtype": parameter.dtype, "generator": generator}
            parameter.data += STRIDE * torch.randn(parameter.shape, **noise)
        yield
    finally:
        for parameter, values in zip(own, kept, strict=True):
            parameter.data.copy_(values)


def _compare(head: SubsetHead, input_ids: Tensor, logits: Tensor, captures: list[Capture], tolerance: float) -> None:
    """The comparisons of `check_parity`, with the model as it is, which gave `logits` [L - 1, V]."""
    kind, device, scale = type(head.base).__name__, input_ids.device, logits.abs().max().item()
    subset, error = logits[:, head.ids.to(device)], 0.0
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
    request = Request(torch.arange(input_ids.numel() - 1, device=input_ids.device), input_ids[0, 1:], normalise=True)
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
    length, half = input_ids.numel(), LENGTH // 2
    changed = input_ids[:, torch.arange(length, device=input_ids.device) % half]
    rows = torch.cat([input_ids, changed])
    flat = torch.arange(length + half, device=rows.device)
    flat = flat[flat != length - 1]
    with evaluating(head.model), head.watch(Request(flat, rows.flatten()[flat + 1])) as captures:
        head.decode(rows, torch.ones_like(rows))
    alone, before = head.one(captures).logits.split([length - 1, half])
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
