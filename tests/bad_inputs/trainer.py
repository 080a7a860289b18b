"""Trainers, their settings, and the order in which they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
import trl
from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import Trainer, default_data_collator

from pact_plugins import PactCallback
from pact_plugins.config import Objective
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.preflight import dry_run
from pact_plugins.run.preparation import evidence_of, prepare
from pact_plugins.run.trainer import Start
from tests import tiny
from tests.bad_inputs.case import ROWS, BadInput, Begun, config, given, trainer_on
from tests.contract.hosts import moves_below
from tests.rows import documents, few


def _bound(
    change: Callable[[Any], Any] = lambda trainer: None, settings: dict[str, Any] | None = None, **of_trainer: Any
) -> Begun:
    """A run on a trainer that was changed."""

    def make(folder: Path) -> Any:
        trainer = trainer_on(folder, **of_trainer)
        change(trainer)
        return trainer, config(folder, **(settings or {}))

    return Begun(make)


def accelerator(**state: Any) -> Callable[[Any], None]:
    """Lets the trainer's accelerator look as it would under another engine."""

    def change(trainer: Any) -> None:
        own = {"unwrap_model": lambda model: model, "num_processes": 1, "state": SimpleNamespace()}
        trainer.accelerator = SimpleNamespace(**{**own, **state})

    return change


def fsdp(**settings: Any) -> Callable[[Any], None]:
    """With these settings of its plugin."""
    plugin = SimpleNamespace(**{"cpu_offload": None, **settings})
    return accelerator(state=SimpleNamespace(fsdp_plugin=plugin))


def deepspeed(**settings: Any) -> Callable[[Any], None]:
    plugin = SimpleNamespace(zero_stage=3, deepspeed_config=settings)
    return accelerator(state=SimpleNamespace(deepspeed_plugin=plugin))


def _quantised_zero3(trainer: Any) -> None:
    deepspeed()(trainer)
    trainer.model.is_quantized = True


def _parallelism(**sizes: int) -> Callable[[Any], None]:
    return accelerator(parallelism_config=ParallelismConfig(**sizes))


def _gpus(trainer: Any) -> None:
    trainer.args._n_gpu = 2


def _own_loss(trainer: Any) -> None:
    trainer.compute_loss_func = lambda outputs, _labels, **_kw: outputs.logits.logsumexp(-1).mean()


def _stream() -> Any:
    return Dataset.from_list(ROWS).to_iterable_dataset()


def _with_adapter(kind: peft.PeftConfig) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        return peft.get_peft_model(tiny.llama(), kind)

    return make


def _moving(folder: Path) -> None:
    lora = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = trainer_on(folder, data=_stream(), model=_with_adapter(lora))
    trainer.add_callback(PactCallback(trainer, config(folder)))
    moves_below(trainer)
    trainer.train()


class ImageProcessor:
    """What prepares images, and no text."""


def _with_images(trainer: Any) -> None:
    trainer.data_collator = lambda rows: {
        **default_data_collator(rows),
        "pixel_values": torch.zeros(len(rows), 3, 2, 2),
    }
    trainer.train_dataset = [dict(row) for row in ROWS]


def _twice(folder: Path) -> None:
    trainer = trainer_on(folder)
    PactCallback(trainer, config(folder))
    PactCallback(trainer, config(folder))


def _after_removal(folder: Path) -> None:
    trainer = trainer_on(folder)
    callback = PactCallback(trainer, config(folder))
    trainer.add_callback(callback)
    assert callback.binding is not None
    callback.binding.remove()
    trainer.train()


def _made_and_not_added(folder: Path) -> None:
    trainer = trainer_on(folder)
    PactCallback(trainer, config(folder))
    trainer.train()


def _the_same_twice(folder: Path) -> None:
    trainer = trainer_on(folder)
    callback = PactCallback(trainer, config(folder))
    trainer.add_callback(callback)
    trainer.add_callback(callback)
    trainer.train()


def _on_another_trainer(folder: Path) -> None:
    other = trainer_on(folder)
    other.add_callback(PactCallback(trainer_on(folder), config(folder)))
    other.train()


def _after_training(folder: Path) -> None:
    trainer = trainer_on(folder)
    trainer.train()
    PactCallback(trainer, config(folder))


def _rows_of_chance(trainer: Any) -> None:
    answers = iter(range(40, 100))

    def other(_rows: Any) -> dict[str, Any]:
        answer = next(answers)
        return {"input_ids": [[0, 7, 8, 9, answer]], "labels": [[-100, -100, -100, -100, answer]]}

    trainer.train_dataset = Dataset.from_list(ROWS).with_transform(other)


def _of_trl(trainer: Any) -> None:
    of_trl = type("KTOTrainer", (Trainer,), {"__module__": "trl.trainer.kto_trainer"})
    trainer.__class__ = type("MyTrainer", (of_trl,), {})


def _dpo(trainer: Any) -> None:
    trainer.__class__ = trl.DPOTrainer


def _looked_at(folder: Path) -> None:
    _dpo(trainer := trainer_on(folder))
    dry_run.attach(trainer, config(folder, anchors=2), lambda *_: None)


def _trained_tokens(trainer: Any) -> None:
    tied, lora = tiny.llama(tie_word_embeddings=True), {"target_modules": ["q_proj"], "trainable_token_indices": [40]}
    trainer.model = peft.get_peft_model(tied, peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    trainer.__class__ = type("SFTTrainer", (Trainer,), {"compute_loss": trl.SFTTrainer.compute_loss})


def _the_end_without_a_beginning(folder: Path) -> None:
    binding = PactCallback(trainer_on(folder), config(folder)).binding
    assert binding is not None
    binding.end()


def _resumed(**now: Any) -> Callable[[Path], Any]:
    """Continues a run with other settings than it had."""

    def act(folder: Path) -> Any:
        def ready(resumed_from: Path | None, **settings: Any) -> Any:
            rows = documents(few()[: settings.pop("rows", 4)])
            settings = config(folder, **settings)
            return prepare(
                Start(tiny.llama(), tiny.tokenizer(), rows, settings, resumed_from=resumed_from, show_progress=False)
            )

        evidence_of(ready(None)).save(folder / "run")
        return ready(folder / "run", **{k: v(folder) if callable(v) else v for k, v in now.items()})

    return act


def _paper(**more: Any) -> dict[str, Any]:
    objective: Objective = "paper"
    return {"objective": objective, **more}


INPUTS = [
    BadInput(
        "A trainer without a tokenizer", _bound(tokenizer=None), r"`processing_class`.*; got a trainer without one"
    ),
    BadInput(
        "What prepares images in place of the tokenizer",
        _bound(tokenizer=ImageProcessor()),
        r"`processing_class`.*; got a ImageProcessor\..*processing_class=tokenizer",
    ),
    BadInput("Images in the training set", _bound(_with_images), r"text alone; got `pixel_values` in the"),
    BadInput(
        "A streaming data set",
        _bound(data=_stream()),
        r"a streaming data set.*whole",
    ),
    BadInput(
        "An adapter that adds something, beside a stream",
        _bound(
            data=_stream(),
            model=_with_adapter(peft.LoHaConfig(target_modules=["q_proj"], init_weights=False, task_type="CAUSAL_LM")),
        ),
        r"with its adapter taken off.*from the start \(LOHA\)",
    ),
    BadInput("Weights that move below an adapter, beside a stream", _moving, r"the model below the adapter.*by step 1"),
    BadInput("Rows that are others each time", _bound(_rows_of_chance), r"gives row 0 differently the second time"),
    BadInput("Several GPUs in one process", _bound(_gpus), r"DataParallel over 2 GPUs.*torchrun"),
    BadInput("FSDP1", _bound(fsdp(fsdp_version=1)), r"; got FSDP1\..*fsdp_version: 2"),
    BadInput(
        "FSDP2 that offloads weights",
        _bound(fsdp(fsdp_version=2, cpu_offload=CPUOffloadPolicy())),
        r"; got FSDP2 that offloads weights.*without offloading",
    ),
    BadInput("A quantised model under ZeRO-3", _bound(_quantised_zero3), r"; got a quantised model under DeepSpeed"),
    BadInput("Context parallelism", _bound(_parallelism(cp_size=2)), r"; got context parallelism"),
    BadInput("Sequence parallelism", _bound(_parallelism(sp_size=2)), r"; got sequence parallelism"),
    BadInput("Tensor parallelism", _bound(_parallelism(tp_size=2)), r"; got tensor parallelism"),
    BadInput(
        "DeepSpeed's sequence parallelism",
        _bound(deepspeed(sequence_parallel_size=2)),
        r"; got sequence parallelism",
    ),
    BadInput(
        "DeepSpeed's tensor parallelism",
        _bound(deepspeed(tensor_parallel={"autotp_size": 2})),
        r"; got tensor parallelism",
    ),
    BadInput(
        "Anchors beside re-entrant checkpointing under DeepSpeed",
        _bound(
            deepspeed(),
            {"anchors": 2},
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": True},
        ),
        r"re-entrant gradient checkpointing under DeepSpeed.*`pact\.anchors: 0`",
    ),
    BadInput(
        "A loss that labels do not rule, beside damping",
        _bound(_own_loss),
        r"that have a label.*; got one that goes from \S+ to \S+ with what.*`pact\.conflict: keep`",
    ),
    BadInput(
        "Trained tokens of a tied model under TRL's own loss",
        _bound(_trained_tokens),
        r"; got trained tokens of a tied model.*`modules_to_save: \[embed_tokens\]`",
    ),
    BadInput("Another trainer for preferences", _bound(_of_trl), r"; got TRL's KTOTrainer\..*`SFTTrainer`"),
    BadInput(
        "Damping beside DPO",
        _bound(_dpo, {"anchors": 2, "conflict": "damp"}),
        r"; got TRL's DPOTrainer together with `conflict: damp` of `pact`\..*Leave them out",
    ),
    BadInput("A look at DPO before it begins", _looked_at, r"; got one by `DPOTrainer`, beside which anchors alone"),
    BadInput("DPO with nothing held", _bound(_dpo), r"; got TRL's DPOTrainer together with `pact\.anchors: 0`"),
    BadInput(
        "The class of a trainer in its place",
        given(PactCallback, Trainer),
        r"as `PactCallback\(trainer\)`; got the class Trainer\..*`callbacks=\[PactCallback\(\)\]`",
    ),
    BadInput("A model in the trainer's place", lambda _: PactCallback(tiny.llama()), r"; got a LlamaForCausalLM"),
    BadInput(
        "Settings before the trainer",
        lambda folder: PactCallback(config(folder), trainer_on(folder)),  # pyright: ignore[reportArgumentType]
        r"; got a PactConfig\..*Settings come second",
    ),
    BadInput(
        "Settings in two ways",
        lambda folder: PactCallback(trainer_on(folder), {"weight": 2}, anchors=0),
        r"; got an object, and anchors by name",
    ),
    BadInput("A misspelt setting by name", given(PactCallback, wieght=2), r"`pact\.wieght`.*Did you mean `weight`"),
    BadInput("A callback twice", _the_same_twice, r"once in the trainer's list"),
    BadInput("A callback on another trainer than its own", _on_another_trainer, r"; got another trainer"),
    BadInput(
        "A callback without a trainer",
        lambda _: PactCallback().on_train_begin(),
        r"the trainer of the callback to begin training; got something else",
    ),
    BadInput("A callback after training", _after_training, r"yet to train; got one that has trained 1 steps"),
    BadInput("PACT twice", _twice, r"one PACT per trainer"),
    BadInput("PACT taken off before training", _after_removal, r"a trainer that still has PACT"),
    BadInput(
        "A callback that was made and not added",
        _made_and_not_added,
        r"PACT to be prepared.*`trainer\.add_callback\(PactCallback\(trainer\)\)`, then `trainer\.train\(\)`",
    ),
    BadInput("The end of a run that never began", _the_end_without_a_beginning, r"told that training begins"),
    BadInput("A step without a forward pass", given(SubsetHead.one, []), r"exactly one forward pass.*; got 0"),
    BadInput(
        "A step with two forward passes", given(SubsetHead.one, [None, None]), r"exactly one forward pass.*; got 2"
    ),
    BadInput(
        "A prompt file that is missing when training begins",
        _bound(settings={"eval": {"prompts": ["mine.csv"]}}),
        r"mine\.csv",
    ),
    BadInput(
        "A judge that is misspelt when training begins", _bound(settings={"eval": {"judges": ["opning"]}}), r"`opening`"
    ),
    BadInput(
        "Resuming a run that had no PACT",
        lambda folder: prepare(
            Start(
                tiny.llama(),
                tiny.tokenizer(),
                documents(few()),
                config(folder),
                resumed_from=folder,
                show_progress=False,
            )
        ),
        r"the evidence of the run being resumed.*pact_evidence\.json",
    ),
    BadInput("Resuming with other data", _resumed(rows=3), r"data = .*as in the run being resumed"),
    BadInput("Resuming with other safety tokens", _resumed(safety_tokens=[50]), r"safety_tokens = .*being resumed"),
    BadInput("Resuming with anchors", _resumed(anchors=2), r"anchors = False, as in the run being resumed"),
    BadInput("Resuming with another gate", _resumed(gate=True), r"reach = .*being resumed"),
    BadInput(
        "Resuming after the cache was removed",
        _resumed(cache_dir=lambda folder: folder / "elsewhere"),
        r"the reference cache of the run being resumed.*elsewhere.*`pact\.cache_dir`",
    ),
]
