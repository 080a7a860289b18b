"""Training runs that are the same in one process and in several, as far as their updates go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from pact_plugins import PactCallback, own_answers
from pact_plugins.answers import Document
from tests import tiny
from tests.contract.hosts import axolotl_trainer, config, model_of, trl_trainer

IN_ORDER = {"train_sampling_strategy": "sequential"}
"""Several processes shuffle in another way than one."""

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "full": ("full", {}, {"objective": "paper", "gate": True}),
    "lora": ("lora", {}, {"anchors": 4, "gate": True}),
    "packed": ("lora", {"packing": True, "max_length": 128}, {"anchors": 4}),
    "accumulated": ("full", {"gradient_accumulation_steps": 2}, {"anchors": 4}),
    "checkpointed": ("lora", {"gradient_accumulation_steps": 2, **CHECKPOINTING}, {"anchors": 4}),
}
"""By name: what is trained, settings of the trainer, and settings of PACT, whose anchors are those of all processes."""


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_args: Any, model: Any, **_kw: Any) -> None:
        named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
        self.steps.append({name: grad.clone() for name, grad in named.items() if grad is not None})


def train(folder: Path, host: str) -> dict[str, tuple[list[dict[str, torch.Tensor]], list[dict[str, float]]]]:
    """The gradients of each step, and what was logged, of every case."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_answers, "write_answers", _uneven(own_answers.write_answers))
        return {name: _train(folder / f"{host}-{name}", host, name) for name in CASES}


def _uneven(write: Any) -> Any:
    """Anchors of very different lengths: the random model ends few of its answers."""

    def write_answers(*args: Any, **kw: Any) -> list[Document]:
        answers = write(*args, **kw)
        ends = [len(d.input_ids) - min(i, int(d.supervised.sum()) - 1) for i, d in enumerate(answers)]
        return [Document(d.input_ids[:end], d.supervised[:end]) for d, end in zip(answers, ends, strict=True)]

    return write_answers


def _train(folder: Path, host: str, case: str) -> Any:
    ranks = int(os.environ["WORLD_SIZE"])
    adapter, settings, pact = CASES[case]
    torch.manual_seed(0)
    if host == "trl":
        # The same rows in each step: TRL's cross-entropy is a mean over the tokens of all of them.
        size = {"per_device_train_batch_size": (2 if "packing" in settings else 4) // ranks, **IN_ORDER}
        trainer = trl_trainer(model_of(adapter), folder, tiny.conversations(48, 2), **size, **settings)
    else:
        # The same micro-batches in each step: Axolotl's is a mean of their means.
        accumulation = settings.get("gradient_accumulation_steps", 1) * 2 // ranks
        trainer = _axolotl(adapter, folder, **{**settings, "gradient_accumulation_steps": accumulation})
    anchors = pact.get("anchors", 0) // ranks
    kept: dict[str, Any] = {"conflict_threshold": 0.0, "weight": 2.0, **pact, "anchors": anchors}
    if kept.get("objective") == "paper":
        del kept["conflict_threshold"]
    trainer.add_callback(PactCallback(trainer, config(folder, **kept)))
    gradients = _Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    logged = [
        {k: v for k, v in entry.items() if k == "loss" or k.startswith("pact/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return gradients.steps, logged


def _axolotl(adapter: str, folder: Path, *, packing: bool = False, max_length: int = 256, **settings: Any) -> Any:
    size = {"per_device_train_batch_size": 2, **IN_ORDER}
    if not packing:
        return axolotl_trainer(model_of(adapter), folder, tiny.conversations(48, 2), **size, **settings)
    from axolotl.monkeypatch.data.batch_dataset_fetcher import apply_multipack_dataloader_patch
    from axolotl.utils.collators import V2BatchSamplerDataCollatorForSeq2Seq

    apply_multipack_dataloader_patch()
    packed = {"sample_packing": True, "max_seq_length": max_length, "curriculum_sampling": True, "dataset_num_proc": 1}
    trainer = axolotl_trainer(model_of(adapter), folder, tiny.conversations(48, 2), **size, **packed, **settings)
    # What Axolotl's own preparation of a packed data set leaves.
    rows = [{**row, "position_ids": list(range(len(row["input_ids"])))} for row in trainer.train_dataset]
    trainer.train_dataset = Dataset.from_list([{k: v for k, v in r.items() if k != "attention_mask"} for r in rows])
    trainer.data_collator = trainer.train_data_collator = V2BatchSamplerDataCollatorForSeq2Seq(
        tiny.tokenizer(), padding=True
    )
    return trainer
