"""Training runs that are the same in one process and in several, as far as their updates go."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from pact_plugins import PactCallback
from pact_plugins.chat.answers import Document
from pact_plugins.method import asking, safety_tokens
from pact_plugins.method.asking import Asked
from tests import tiny
from tests.brief import few_prompts, without_page
from tests.contract.hosts import axolotl_trainer, config, dpo_trainer, model_of, trl_trainer

IN_ORDER = {"train_sampling_strategy": "sequential"}
"""Several processes shuffle in another way than one."""

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}

REENTRANT = {
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": True},
    "ddp_find_unused_parameters": False,
}
"""As Axolotl does where nothing is said."""

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "full": ("full", {}, {"objective": "paper", "gate": True}),
    "lora": ("lora", {}, {"anchors": 4, "gate": True}),
    "packed": ("lora", {"packing": True, "max_length": 128}, {"anchors": 4}),
    "accumulated": ("full", {"gradient_accumulation_steps": 2}, {"anchors": 4}),
    "checkpointed": ("lora", {"gradient_accumulation_steps": 2, **CHECKPOINTING}, {"anchors": 4}),
    "re-entrant": ("lora", {"gradient_accumulation_steps": 2, **REENTRANT}, {"anchors": 4}),
    "re-entrant, full": ("full", REENTRANT, {"anchors": 4}),
    "pairs": ("lora", {}, {"anchors": 4}),
    "streaming": ("lora", {"accelerator_config": {"dispatch_batches": False}}, {"anchors": 4}),
}
"""By name: what is trained, settings of the trainer, and settings of PACT, whose anchors are those of all processes."""


VARIANTS: dict[str, dict[str, Any]] = {
    "uneven": {"num_train_epochs": 1, "max_steps": -1},
    "dispatched": {"accelerator_config": {"dispatch_batches": True, "split_batches": True}},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "unanswered": {},
}
"""Ways to hand out data, by name."""


class _Gradients(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_args: Any, model: Any, **_kw: Any) -> None:
        named = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
        self.steps.append({name: grad.clone() for name, grad in named.items() if grad is not None})


def train(folder: Path, host: str) -> dict[str, tuple[list[dict[str, torch.Tensor]], list[dict[str, float]]]]:
    """The gradients of each step, and what was logged, of every case."""
    with pytest.MonkeyPatch.context() as patch:
        without_page(patch)
        few_prompts(patch)
        patch.setattr(asking, "ask", _uneven(asking.ask))
        return {name: _train(folder / f"{host}-{name}", host, name) for name in CASES}


def _uneven(ask: Any) -> Any:
    """Anchors of very different lengths: the random model ends few of its answers."""

    def cut(*args: Any, **kw: Any) -> Asked:
        asked: Asked = ask(*args, **kw)
        counts = [int(d.supervised.sum()) for d in asked.documents]
        lost = [min(i, count - 1) for i, count in enumerate(counts)]
        ends = [len(d.input_ids) - n for d, n in zip(asked.documents, lost, strict=True)]
        kept = torch.cat([torch.arange(count) < count - n for count, n in zip(counts, lost, strict=True)])
        return replace(
            asked,
            documents=[Document(d.input_ids[:e], d.supervised[:e]) for d, e in zip(asked.documents, ends, strict=True)],
            candidates=asked.candidates[kept],
            log_probabilities=asked.log_probabilities[kept],
        )

    return cut


def _train(folder: Path, host: str, case: str) -> Any:
    ranks = int(os.environ["WORLD_SIZE"])
    adapter, settings, pact = CASES[case]
    torch.manual_seed(0)
    if case == "pairs":
        trainer = dpo_trainer(host, adapter, folder, per_device_train_batch_size=4 // ranks, **IN_ORDER, **settings)
    elif host == "trl":
        # The same rows in each step: TRL's cross-entropy is a mean over the tokens of all of them.
        size = {"per_device_train_batch_size": (2 if "packing" in settings else 4) // ranks, **IN_ORDER}
        trainer = trl_trainer(model_of(adapter), folder, tiny.conversations(48, 2), **size, **settings)
    else:
        # The same micro-batches in each step: Axolotl's is a mean of their means.
        accumulation = settings.get("gradient_accumulation_steps", 1) * 2 // ranks
        trainer = axolotl_with(adapter, folder, **{**settings, "gradient_accumulation_steps": accumulation})
    if case == "streaming":
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    anchors = pact.get("anchors", 0) // ranks
    kept: dict[str, Any] = {"conflict_threshold": 0.03, "weight": 2.0, **pact, "anchors": anchors}
    if kept.get("objective") == "paper" or case == "pairs":
        del kept["conflict_threshold"]
    trainer.add_callback(PactCallback(trainer, config(folder, **kept)))
    if settings.keys() >= REENTRANT.keys():
        trainer.model.enable_input_require_grads()
    gradients = _Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    logged = [
        {k: v for k, v in entry.items() if k == "loss" or k.startswith("pact/")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return gradients.steps, logged


def axolotl_with(adapter: str, folder: Path, *, packing: bool = False, max_length: int = 256, **settings: Any) -> Any:
    """Axolotl's trainer, with its sample packing where it packs."""
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


def variants(folder: Path, host: str) -> dict[str, dict[str, Any]]:
    """How 13 rows in each variant's way end: steps, parameters, and what was logged."""
    with pytest.MonkeyPatch.context() as patch:
        without_page(patch)
        few_prompts(patch)
        return {name: _variant(folder / name, host, name) for name in VARIANTS}


def _variant(folder: Path, host: str, name: str) -> dict[str, Any]:
    make = trl_trainer if host == "trl" else axolotl_trainer
    settings = {"per_device_train_batch_size": 2, "dataloader_drop_last": False, **VARIANTS[name]}
    trainer = make(tiny.llama(), folder, tiny.conversations(13, 2), **settings)
    trainer.add_callback(PactCallback(trainer, config(folder, anchors=2, conflict_threshold=0.03)))
    if name == "unanswered" and os.environ["RANK"] == "1":
        step = trainer.training_step

        def unanswered(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            return step(model, {**inputs, "labels": torch.full_like(inputs["labels"], -100)}, *rest)

        trainer.training_step = unanswered
    trainer.train()
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "steps": trainer.state.global_step,
        "parameters": {n: p.detach().clone() for n, p in model.named_parameters()},
        "logged": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def report(folder: Path, host: str) -> None:
    """A run with questions before and after, and the probe."""
    make = trl_trainer if host == "trl" else axolotl_trainer
    # The same micro-batches for each step in any number of ranks.
    accumulation = 2 // int(os.environ["WORLD_SIZE"])
    size = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, **IN_ORDER}
    trainer = make(tiny.llama(), folder, tiny.conversations(16, 2), **size)
    eval_ = {"limit": 12, "max_new_tokens": 8}
    pact = config(folder, eval=eval_, probe={"every": 1, "prompts": 3}, safety_tokens="auto")
    safety_tokens.LEAST_REFUSALS = 0.0  # random weights refuse nothing
    trainer.add_callback(PactCallback(trainer, pact))
    trainer.train()


def fails(folder: Path, what: str) -> None:
    """A run that cannot end well, in one rank or in all of them."""
    rank = int(os.environ["RANK"])
    rows = 16 + (what == "other data" and rank == 1)
    trainer = trl_trainer(tiny.llama(), folder, tiny.conversations(rows, 2), per_device_train_batch_size=2)
    if what == "streaming":
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    trainer.add_callback(PactCallback(trainer, config(folder)))
    if what == "missing reference" and rank == 1:
        step = trainer.training_step

        def changed(model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            turned = {name: inputs[name].flip(1) for name in ("input_ids", "labels")}
            return step(model, {**inputs, **turned}, *rest)

        trainer.training_step = changed
    trainer.train()
