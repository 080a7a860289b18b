"""The reference against the model on the trainer's own batches: equal for collators that people copy, or a stop."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pact_plugins import PactCallback, PactError
from pact_plugins.method.reference import ReferenceCache
from pact_plugins.run.agreement import TOLERANCE
from tests import tiny
from tests.contract.hosts import HOSTS, Trainer, config, trl_trainer
from tests.rows import packed

pytestmark = pytest.mark.usefixtures("brief_runs")

END = 1
Batch = dict[str, Tensor]


def hiding_every_end(batch: Batch) -> Batch:
    """`attention_mask = input_ids.ne(pad)` where the padding is the token that ends turns: a hole at each end."""
    ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, END)
    return {**batch, "input_ids": ids, "attention_mask": ids.ne(END).long()}


def counting_positions(batch: Batch) -> Batch:
    """The same with the positions that are copied from GPT-2's generation: they stand still at a hole."""
    batch = hiding_every_end(batch)
    mask = batch["attention_mask"]
    return {**batch, "position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)}


def padding_left(batch: Batch) -> Batch:
    lengths = batch["attention_mask"].sum(-1).tolist()
    width = batch["input_ids"].shape[1]
    return {
        name: torch.stack([row.roll(width - n) for row, n in zip(values, lengths, strict=True)])
        for name, values in batch.items()
    }


def of_floats(batch: Batch) -> Batch:
    return {**batch, "attention_mask": batch["attention_mask"].float()}


def in_one_row(batch: Batch) -> Batch:
    """Packed with positions that begin again, without a mask."""
    lengths = batch["attention_mask"].sum(-1).tolist()
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), lengths, strict=True)
    return packed([(ids[:n], labels[:n]) for ids, labels, n in rows])


def seeing_one_another(batch: Batch) -> Batch:
    """The same with a mask of ones: in the model, the documents of a row see one another."""
    batch = in_one_row(batch)
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def hiding_at_random(batch: Batch) -> Batch:
    return {**batch, "attention_mask": batch["attention_mask"] * (torch.rand(batch["input_ids"].shape) > 0.3)}


def begun(host: Trainer, tmp_path: Path, change: Callable[[Batch], Batch] = dict, **settings: Any) -> PactCallback:
    """A callback of a trainer whose collator's batches went through `change`, at the beginning of training."""
    trainer = host(tiny.llama(), tmp_path)
    collator = trainer.data_collator
    trainer.data_collator = lambda rows: change(dict(collator(rows)))
    callback = PactCallback(trainer, config(tmp_path, **settings))
    callback.on_train_begin()
    return callback


COPIED = [dict, hiding_every_end, counting_positions, padding_left, of_floats, in_one_row]


@pytest.mark.parametrize("change", COPIED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("host", HOSTS)
def test_the_reference_is_the_model_under_every_collator(
    host: Trainer, change: Callable[[Batch], Batch], tmp_path: Path
) -> None:
    """Prevents: a reference without its prompt, or at other positions, which looks plausible and is wrong."""
    binding = begun(host, tmp_path, change).binding
    assert binding is not None
    assert binding.recorder is not None
    agreement = binding.recorder.evidence.about["agreement"]
    assert agreement["difference"] < TOLERANCE / 4
    assert agreement["sequences"] == agreement["batches"] * 4 == 16


@pytest.mark.parametrize("change", [seeing_one_another, hiding_at_random], ids=lambda f: f.__name__)
@pytest.mark.parametrize("host", HOSTS)
def test_batches_that_cannot_be_served_stop_the_run(
    host: Trainer, change: Callable[[Batch], Batch], tmp_path: Path
) -> None:
    """Prevents: contaminated packing and masks drawn at random training against a reference of something else."""
    with pytest.raises(PactError, match=r"nats in row \d+ of the training set|gives row 0 differently the second time"):
        begun(host, tmp_path, change)


def test_a_wrong_value_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a guard that passes whatever the cache holds."""
    look_up = ReferenceCache.look_up

    def shifted(cache: ReferenceCache, tokens: Any) -> Any:
        found = look_up(cache, tokens)
        found.full[-1] -= 1  # the last token of the last sequence of a batch
        return found

    monkeypatch.setattr(ReferenceCache, "look_up", shifted)
    with pytest.raises(PactError, match=r"a mean difference of 0\.\d+ nats in row \d+"):
        begun(HOSTS[0].values[0], tmp_path)


@pytest.mark.parametrize("host", HOSTS)
def test_the_run_is_as_without_the_guard(host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: batches in another order, or another dropout, because a guard has drawn random numbers."""
    drawn: list[list[Any]] = []
    for batches in (4, 0):
        monkeypatch.setattr("pact_plugins.run.first_batches.BATCHES", batches)
        trainer = host(tiny.llama(), tmp_path, seed=3)
        PactCallback(trainer, config(tmp_path)).on_train_begin()
        order = [batch["input_ids"].tolist() for batch in trainer.get_train_dataloader()]
        drawn.append([order, torch.rand(1).item(), random.random(), np.random.rand()])
        assert trainer.model.training
        assert not getattr(trainer, "_metrics", {}).get("eval")
    assert drawn[0][0] == drawn[1][0]


@pytest.mark.trl
def test_the_guard_looks_at_adapters_in_half_precision(tmp_path: Path) -> None:
    """Prevents: rounding in bfloat16 stopping a sound run."""
    trainer = trl_trainer(tiny.llama().to(torch.bfloat16), tmp_path)
    PactCallback(trainer, config(tmp_path)).on_train_begin()


@pytest.mark.trl
def test_the_guard_knows_that_forward_passes_run_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: rounding under `bf16: true` stopping a sound run of a model whose weights are float32."""
    monkeypatch.setattr("pact_plugins.run.agreement.TOLERANCE", -1.0)
    trainer = trl_trainer(tiny.llama(), tmp_path, bf16=True)
    PactCallback(trainer, config(tmp_path)).on_train_begin()
