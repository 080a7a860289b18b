"""What the host's loss makes of labels, measured before the first step instead of read off its name.

Hosts offer several losses, and people override `compute_loss`. PACT needs to know two things of one: by what it divides
the loss of a token, since the safety term takes the same scale; and whether a token without a label leaves it, since
that is how damping works. Plain cross-entropy, label smoothing, DFT, EAFT, or weights of one's own: all do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pact_plugins.chat.answers import IGNORE_INDEX
from pact_plugins.errors import PactError
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.support import decoder_of, last_hidden, underlying

ROUNDING = 1e-3
"""Largest accepted difference between two losses that should be one, relative to them."""


@dataclass(frozen=True)
class HostLoss:
    """How the host reduces the losses of tokens.

    Attributes:
        per_item: True where it divides by the `num_items_in_batch` that it is given, the labels of an optimiser step;
            False where it divides by the labels of its own micro-batch.
    """

    per_item: bool = True


def measure_host_loss(
    trainer: Any,
    compute_loss: Callable[..., Any],
    batches: Sequence[dict[str, Any]],
    *,
    damps: bool,
    ranks: Ranks = ALONE,
) -> HostLoss:
    """Four forward passes over one micro-batch.

    A loss that changes with `num_items_in_batch` is divided by it. One that hidden labels take a token out of does not
    change with what the model says there: the hidden state of every second label is turned round for that.

    Args:
        compute_loss: its own, without PACT.
        batches: its first ones (`first_batches`).
        damps: whether labels will be hidden from the loss.
        ranks: of the run. Hosts gather their metrics: all have to take part.

    Raises:
        PactError: they will be, and tokens without a label take part in the loss.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)

    def loss(inputs: dict[str, Any], items: int) -> float:
        with trainer.compute_loss_context_manager():
            # A new dictionary: trainers take keys out of it.
            return float(compute_loss(model, {**inputs}, num_items_in_batch=torch.tensor(items, device=model.device)))

    inputs = next((b for b in batches if _places(b["labels"]).numel() > 1), None)
    if not all(ranks.exchange(inputs is not None, "measuring the host's loss")) or inputs is None:
        return HostLoss()
    labels: Tensor = inputs["labels"]
    places = _places(labels)
    count, hidden = places.numel(), places[::2]
    whole, halved = loss(inputs, count), loss(inputs, 2 * count)
    inputs = {**inputs, "labels": labels.flatten().index_fill(0, hidden, IGNORE_INDEX).view_as(labels)}
    without = loss(inputs, count)
    with _turned_round(decoder_of(underlying(model)), hidden - 1):
        turned = loss(inputs, count)
    if damps and abs(turned - without) > ROUNDING * abs(without):
        raise PactError(
            expected="a loss of the tokens that have a label, since `pact.conflict: damp` takes the labels of harmful "
            "answers away",
            got=f"one that goes from {without:.4g} to {turned:.4g} with what the model says where labels are hidden",
            consequence="Harmful answers would be learned in spite of PACT.",
            remedy="Use a loss over labels alone, or set `pact.conflict: keep`.",
        )
    return HostLoss(per_item=abs(halved - whole) > ROUNDING * abs(whole))


@contextmanager
def _turned_round(decoder: nn.Module, places: Tensor) -> Generator[None]:
    """The last hidden states at `places` of the flat batch have the opposite sign within the block."""

    def turn(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = last_hidden(output)
        rows, there = hidden.view(-1, hidden.shape[-1]), places.to(hidden.device)
        rows.index_copy_(0, there, -rows.index_select(0, there))

    with decoder.register_forward_hook(turn):
        yield


def _places(labels: Tensor) -> Tensor:
    """Places, in the flat batch, of labels that are predicted: the first of a row is not."""
    predicted = labels != IGNORE_INDEX
    predicted[..., 0] = False
    return predicted.flatten().nonzero()[:, 0]
