"""Forward passes outside training: eval mode, padded batches of similar length."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pact_plugins.chat.answers import IGNORE_INDEX, Bools, Document, Ints

T = TypeVar("T")

TOKENS_PER_BATCH = 4096
"""Tokens, padding included, in one forward pass of discovery or cache building."""

SHORTEST = 0.75
"""Length of a batch's shortest sequence beside its longest, at least: padding is at most a quarter of a batch."""


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode without gradients; each module returns to the mode it had.

    bitsandbytes' 4-bit layers stay in train mode: on CPU their eval-mode forward repacks the weights for good, after
    which LoRA gradients vanish silently.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for module in modes:
        if type(module).__name__ == "Linear4bit":
            module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def autocast_dtype(model: nn.Module) -> torch.dtype | None:
    """What the forward passes compute in, where the caller's autocast context decides it; None where it does not."""
    device = next(model.parameters()).device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def precision(model: nn.Module) -> str:
    """The same in words, as identities name it."""
    return str(autocast_dtype(model) or "as stored")


def batches_by_length(lengths: Sequence[int], budget: int = TOKENS_PER_BATCH) -> list[list[int]]:
    """Indices of sequences in batches of similar length, each of at most `budget` tokens after padding.

    A sequence shorter than `SHORTEST` times its batch's longest opens a new batch.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for i in order:
        # The first of a batch is its longest, so it alone decides the padded width.
        longest = lengths[batches[-1][0]] if batches else 0
        if not batches or (len(batches[-1]) + 1) * longest > budget or lengths[i] < SHORTEST * longest:
            batches.append([])
        batches[-1].append(i)
    return batches


def pad(sequences: Sequence[npt.NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids and attention mask, both [B, L]. Padding ids are 0: nothing attends to them."""
    width = max(len(s) for s in sequences)
    ids = np.zeros((len(sequences), width), np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    return to_device(ids, device), to_device(mask, device)


class Seen(Protocol):
    """What goes through the model as one sequence: token ids, which of them are seen, and where they stand.

    All are [L], as in `answers.Document`.
    """

    @property
    def input_ids(self) -> Ints: ...
    @property
    def seen(self) -> Bools | None: ...
    @property
    def positions(self) -> Ints | None: ...


def padded(sequences: Sequence[Seen], device: torch.device) -> dict[str, Tensor]:
    """What a decoder takes: `input_ids`, `attention_mask` and, where positions jump, `position_ids`, all [B, L]."""
    ids, mask = pad([s.input_ids for s in sequences], device)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if any(s.seen is not None for s in sequences):
        inputs["attention_mask"], _ = pad([_or(s.seen, np.ones_like(s.input_ids)) for s in sequences], device)
    if any(s.positions is not None for s in sequences):
        inputs["position_ids"], _ = pad([_or(s.positions, np.arange(len(s.input_ids))) for s in sequences], device)
    return inputs


def _or(values: Ints | Bools | None, otherwise: Ints) -> Ints:
    return otherwise if values is None else values.astype(np.int64)


def collate(documents: Sequence[Document]) -> dict[str, Tensor]:
    """The documents as a batch of a trainer: what `padded` gives, and `labels`, on the host."""
    inputs = padded(documents, torch.device("cpu"))
    supervised, _ = pad([d.supervised.astype(np.int64) for d in documents], torch.device("cpu"))
    return {**inputs, "labels": inputs["input_ids"].where(supervised > 0, IGNORE_INDEX)}


def decoder_inputs(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What `collate` gives without its labels, on `device`."""
    return {name: to_device(values.numpy(), device) for name, values in batch.items() if name != "labels"}


def pad_left(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Left-padded ids and attention mask, both [B, L]: the last column holds each sequence's last token."""
    ids, mask = pad([np.asarray(s[::-1], np.int64) for s in sequences], device)
    return ids.flip(1), mask.flip(1)


def to_device(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A copy on `device`, which a GPU makes beside the kernels that are still running."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
