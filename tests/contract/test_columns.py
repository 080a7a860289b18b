"""Columns beside the tokens, and rows that are padded already: what TRL trains on, PACT reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from pact_plugins import PactCallback, PactError
from pact_plugins.chat.answers import split_documents
from tests import tiny
from tests.contract.hosts import common, config

pytestmark = [pytest.mark.trl, pytest.mark.usefixtures("brief_runs")]

WIDTH = 64
KEPT = {"remove_unused_columns": False}
Padded = Callable[[list[int], int], list[int]]


def right(values: list[int], filler: int) -> list[int]:
    return values + [filler] * (WIDTH - len(values))


def left(values: list[int], filler: int) -> list[int]:
    return [filler] * (WIDTH - len(values)) + values


def plain(values: list[int], _filler: int) -> list[int]:
    return values


def rows(pad: Padded, **columns: Callable[[int], Any]) -> Dataset:
    """Tokenised rows; further columns are made of their lengths."""
    found = []
    for messages in tiny.conversations(8)["messages"]:
        row = tiny.tokenizer().apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = row["input_ids"], row["assistant_masks"]
        labels = [i if m else -100 for i, m in zip(ids, mask, strict=True)]
        own = {"input_ids": pad(ids, 2), "labels": pad(labels, -100), "attention_mask": pad([1] * len(ids), 0)}
        found.append({**own, **{name: make(len(own["input_ids"])) for name, make in columns.items()}})
    return Dataset.from_list(found)


def collated(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A collator of somebody's own: it pads weights of tokens, and hands on the weight and the source of each row."""
    width = max(len(row["input_ids"]) for row in batch)

    def padded(name: str, filler: float) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (width - len(row[name])) for row in batch])

    tokens = {"input_ids": padded("input_ids", 2), "labels": padded("labels", -100)}
    further: dict[str, Any] = {"attention_mask": padded("attention_mask", 0)}
    if "weight" in batch[0]:
        further["weight"] = padded("weight", 0.0)
    if "share" in batch[0]:
        further["share"] = torch.tensor([row["share"] for row in batch])
    if "source" in batch[0]:
        further["source"] = [row["source"] for row in batch]
    return {**tokens, **further}


def trainer_of(folder: Path, data: Dataset, collator: Any, settings: dict[str, Any]) -> Any:
    from trl import SFTConfig, SFTTrainer

    class Weighted(SFTTrainer):
        """Takes what is not the model's out of the batch."""

        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
            own = {name: values for name, values in inputs.items() if name not in ("weight", "share", "source")}
            return super().compute_loss(model, own, *args, **kw)

    args = SFTConfig(**common(folder), max_length=256, **settings)
    own = {"processing_class": tiny.tokenizer(), "data_collator": collator}
    return Weighted(model=tiny.llama(), args=args, train_dataset=data, **own)


@pytest.mark.parametrize(
    ("data", "collator", "settings"),
    [
        pytest.param(lambda: rows(right), None, {}, id="padded on the right"),
        pytest.param(lambda: rows(left), None, {}, id="padded on the left"),
        pytest.param(lambda: rows(left), None, KEPT, id="padded on the left, all columns kept"),
        pytest.param(lambda: rows(plain, weight=lambda n: [0.5] * n), collated, KEPT, id="weights of tokens"),
        pytest.param(lambda: rows(plain, share=lambda n: 1 / n), collated, KEPT, id="weights of rows"),
        pytest.param(lambda: rows(plain, source=str), collated, KEPT, id="text"),
        pytest.param(lambda: rows(plain, image_path=str), None, {}, id="text that is not kept"),
    ],
)
def test_what_trl_trains_on_is_read(
    data: Callable[[], Dataset], collator: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Prevents: a run that TRL trains and PACT refuses, or stops at its first step, for columns that change nothing."""
    trainer = trainer_of(tmp_path, data(), collator, settings)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["pact/cache_hits"] == 4
    assert first["pact/answer_tokens"] > 40
    assert abs(first["pact/kl"]) < 1e-6


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param("pixel_values", (2, 8), id="an image by its name"),
        pytest.param("inputs_embeds", (2, 8, 16), id="embeddings by their name"),
        pytest.param("seen", (2, 3, 8, 8), id="an image by its shape"),
        pytest.param("heard", (2, 80), id="a sound by its shape"),
    ],
)
def test_what_a_model_sees_is_refused(name: str, shape: tuple[int, ...]) -> None:
    """Prevents: images and sounds that pass for weights, and a reference that knows nothing of them."""
    ids = torch.arange(16).view(2, 8)
    with pytest.raises(PactError, match=f"a training batch of text; got `{name}`"):
        split_documents({"input_ids": ids, "labels": ids, name: torch.zeros(shape)})
