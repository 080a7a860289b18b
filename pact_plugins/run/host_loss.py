"""What the host's loss makes of labels, measured before the first step instead of read off its name.

Hosts offer several losses, and people override `compute_loss`. PACT needs to know two things of one: by what it divides
the loss of a token, since the safety term takes the same scale; and whether a token without a label leaves it, since
that is how damping works. Plain cross-entropy, label smoothing, DFT, EAFT, or weights of one's own: all do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pact_plugins.chat.answers import IGNORE_INDEX
from pact_plugins.errors import PactError
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.run.first_batches import first_batches

ROUNDING = 0.02
"""Largest accepted difference between a loss and the sum of its parts, relative to the loss."""

BESIDE = 0.1
"""Largest accepted share of a loss that does not come from labels, such as the balance of a router's experts."""


@dataclass(frozen=True)
class HostLoss:
    """How the host reduces the losses of tokens.

    Attributes:
        per_item: True where it divides by the `num_items_in_batch` that it is given, the labels of an optimiser step;
            False where it divides by the labels of its own micro-batch.
    """

    per_item: bool = True


def measure_host_loss(trainer: Any, compute_loss: Callable[..., Any], *, damps: bool, ranks: Ranks = ALONE) -> HostLoss:
    """Four forward passes over one micro-batch.

    With L(labels, n) the host's loss where `num_items_in_batch` is n, A all N labels, and E and O every second of them,
    a loss that divides by n is c / n + x with c = 2 (L(A, N) - L(A, 2 N)) N, and x from elsewhere; one that divides by
    the labels of its micro-batch does not change with n. A sum over tokens gives as much for A as for E and O together.

    Args:
        trainer: about to begin training.
        compute_loss: its own, without PACT.
        damps: whether labels will be hidden from the loss.
        ranks: of the run. Hosts gather their metrics: all have to take part.

    Raises:
        PactError: they will be, and the loss is not a sum over the tokens that have a label.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)

    def loss(inputs: dict[str, Any], hidden: Tensor, items: int) -> float:
        labels: Tensor = inputs["labels"]
        seen = labels.flatten().index_fill(0, hidden, IGNORE_INDEX).view_as(labels)
        divisor = torch.tensor(items, device=labels.device)
        with trainer.compute_loss_context_manager():
            # A new dictionary: trainers take keys out of it.
            return float(compute_loss(model, {**inputs, "labels": seen}, num_items_in_batch=divisor))

    with first_batches(trainer, ranks) as batches:
        inputs = next((b for b in batches if _places(b["labels"]).numel() > 1), None)
        if not all(ranks.exchange(inputs is not None, "measuring the host's loss")) or inputs is None:
            return HostLoss()
        places = _places(inputs["labels"])
        none, count = places[:0], places.numel()
        whole, halved = loss(inputs, none, count), loss(inputs, none, 2 * count)
        even, odd = loss(inputs, places[1::2], count), loss(inputs, places[::2], count)
    from_labels = 2 * (whole - halved)
    per_item = abs(from_labels) > BESIDE * abs(whole)
    if per_item:
        beside = whole - from_labels
        together = even + odd - beside
    else:
        beside = 0.0
        together = (even * places[::2].numel() + odd * places[1::2].numel()) / count
    sums_up = abs(together - whole) <= ROUNDING * abs(whole) and abs(beside) <= BESIDE * abs(whole)
    if damps and (whole == even == odd or not sums_up):
        raise PactError(
            expected="a loss that is a sum over the tokens that have a label, since `pact.conflict: damp` takes the "
            "labels of harmful answers away",
            got=f"one of {whole:.4g} for {count} labels, and of {even:.4g} and {odd:.4g} for the two halves of them",
            consequence="Harmful answers would be learned in spite of PACT.",
            remedy="Use a loss over labels alone, or set `pact.conflict: keep`.",
        )
    return HostLoss(per_item)


def _places(labels: Tensor) -> Tensor:
    """Places, in the flat batch, of labels that are predicted: the first of a row is not."""
    predicted = labels != IGNORE_INDEX
    predicted[..., 0] = False
    return predicted.flatten().nonzero()[:, 0]
