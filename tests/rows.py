"""Training rows of the tiny tokenizer, alone, padded and packed: what the collators of TRL and Axolotl make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pact_plugins.chat.answers import IGNORE_INDEX, Document, split_documents
from pact_plugins.chat.format import ChatFormat, render
from tests import tiny

Row = tuple[list[int], list[int]]
"""`input_ids` and `labels` of one training sequence."""

PAD = 2
CHAT = ChatFormat.from_tokenizer(tiny.tokenizer())


def conversation(*turns: tuple[str, str], on_inputs: bool = False) -> Row:
    """A chat of (question, answer) turns, trained on its answers or on everything."""
    tokenizer = tiny.tokenizer()
    messages: list[dict[str, str]] = []
    labels: list[int] = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        prompt = render(tokenizer, messages, generation_prompt=True)
        messages.append({"role": "assistant", "content": answer})
        whole = render(tokenizer, messages, generation_prompt=False)
        labels += prompt[len(labels) :] if on_inputs else [IGNORE_INDEX] * (len(prompt) - len(labels))
        labels += whole[len(prompt) :]
    return whole, labels


def alone(row: Row) -> dict[str, Tensor]:
    """A batch of one row."""
    return padded([row])


def padded(rows: Sequence[Row], *, left: bool = False, extra: int = 0) -> dict[str, Tensor]:
    """One row a document, filled up with a mask on the right or on the left."""
    width = max(len(ids) for ids, _ in rows) + extra
    batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, labels in rows:
        gap = width - len(ids)
        for name, values, fill in (
            ("input_ids", ids, PAD),
            ("labels", labels, IGNORE_INDEX),
            ("attention_mask", [1] * len(ids), 0),
        ):
            batch[name].append([fill] * gap + values if left else values + [fill] * gap)
    return {name: torch.tensor(values) for name, values in batch.items()}


def packed(rows: Sequence[Row], *, mask_starts: bool = True, tail: int = 0) -> dict[str, Tensor]:
    """All documents in one row with `position_ids`; `tail` pads it with one-token documents, as multiples do."""
    batch: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for ids, labels in rows:
        batch["input_ids"] += ids
        batch["labels"] += [IGNORE_INDEX, *labels[1:]] if mask_starts else labels
        batch["position_ids"] += range(len(ids))
    batch["input_ids"] += [PAD] * tail
    batch["labels"] += [IGNORE_INDEX] * tail
    batch["position_ids"] += [0] * tail
    return {name: torch.tensor([values]) for name, values in batch.items()}


def documents(rows: Sequence[Row]) -> list[Document]:
    """Each row as a document of its own."""
    return [d for row in rows for d in split_documents(alone(row))]


def few(n: int = 4) -> list[Row]:
    """Conversations of different lengths: one turn, two turns, one and two again."""
    rows = []
    for i in range(n):
        first = (f"q{i}" + " why" * (i % 3), f"answer {i}" + " so" * (i % 2))
        rows.append(conversation(first, *([(f"and {i}?", f"more {i}.")] if i % 2 else [])))
    return rows


def forward(model: Any, batch: dict[str, Tensor]) -> Any:
    """The model's own forward pass without labels, on a padded or packed batch."""
    return model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=False)


def flip_bit(path: Any, offset: int, bit: int = 0) -> None:
    """Damages one byte of a file; a negative offset counts from the end."""
    content = np.fromfile(path, np.uint8)
    content[offset] ^= 1 << bit
    content.tofile(path)
