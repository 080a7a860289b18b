"""Trainers of every host on the tiny model, as the contract tests share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, DataCollatorForSeq2Seq, LlamaForCausalLM

from pact_plugins import PactConfig
from tests import tiny, vision

TOKENS: list[int | str] = [40, 41, 42, 43]
LORA = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
Trainer = Callable[..., Any]


def trl_trainer(
    model: Any,
    folder: Path,
    data: Any = None,
    callbacks: Any = None,
    eval_data: Any = None,
    processor: Any = None,
    **settings: Any,
) -> Any:
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(**{**common(folder), "assistant_only_loss": True, "max_length": 256, **settings})
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=data or tiny.conversations(16, 2),
        eval_dataset=eval_data,
        processing_class=processor or tiny.tokenizer(),
        callbacks=callbacks,
    )


def axolotl_trainer(model: Any, folder: Path, data: Any = None, eval_data: Any = None, **settings: Any) -> Any:
    from axolotl.core.trainers.base import AxolotlTrainer
    from axolotl.core.training_args import AxolotlTrainingArguments

    tokenizer = tiny.tokenizer()
    args = AxolotlTrainingArguments(**{**common(folder), "remove_unused_columns": False, **settings})
    return AxolotlTrainer(
        model=model,
        args=args,
        train_dataset=_tokenized(data or tiny.conversations(16, 2)),
        eval_dataset=None if eval_data is None else _tokenized(eval_data),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def dpo_trainer(host: str, adapter: str, folder: Path, **settings: Any) -> Any:
    """Either host's trainer for pairs of answers; `trained lora` goes on with an adapter that was there before."""
    if host == "trl":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Preferring
    else:
        from axolotl.core.trainers.dpo.args import AxolotlDPOConfig as Config
        from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer as Preferring
    torch.manual_seed(0)
    return Preferring(
        model=model_of("lora") if adapter == "trained lora" else tiny.llama(),
        # Of an adapter, they take the model without it, or a copy of it.
        ref_model=tiny.llama() if adapter == "full" else None,
        args=Config(**{**common(folder), "gradient_checkpointing": False, **settings}),
        train_dataset=tiny.preferences(),
        processing_class=tiny.tokenizer(),
        peft_config=LORA if adapter == "lora" else None,
    )


def _tokenized(data: Any) -> Dataset:
    """Conversations as Axolotl's own loader makes rows of them."""
    rows = []
    for messages in data["messages"]:
        row = tiny.tokenizer().apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        labels = [i if m else -100 for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True)]
        rows.append({"input_ids": row["input_ids"], "attention_mask": [1] * len(labels), "labels": labels})
    return Dataset.from_list(rows)


def common(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }


def streaming(host: str, adapter: str, folder: Path, *, packing: bool = False, **settings: Any) -> Any:
    """A trainer whose data set streams, as the host makes it of conversations; without `packing`, in their order."""
    rows = tiny.conversations(48, 2)
    if host == "trl":
        return trl_trainer(model_of(adapter), folder, rows.to_iterable_dataset(), packing=packing, **settings)
    from axolotl.utils.collators import (
        PretrainingBatchSamplerDataCollatorForSeq2Seq,
        V2BatchSamplerDataCollatorForSeq2Seq,
    )
    from axolotl.utils.data.streaming import encode_packed_streaming

    length = settings.pop("max_length", 256)
    if not packing:
        trainer = axolotl_trainer(model_of(adapter), folder, rows, **settings)
        trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
        return trainer
    size: dict[str, Any] = {"sample_packing": True, "per_device_train_batch_size": 1}
    trainer = axolotl_trainer(model_of(adapter), folder, rows, **{**settings, **size})
    collator = PretrainingBatchSamplerDataCollatorForSeq2Seq(
        trainer.processing_class, padding=True, pad_to_multiple_of=length
    )
    encode = partial(
        encode_packed_streaming, collator, lambda dataset: (dataset,), max_seq_length=length, batch_size=2, bin_size=200
    )
    # As `wrap_streaming_dataset` does.
    stream = trainer.train_dataset.to_iterable_dataset().map(
        encode, batched=True, batch_size=48, remove_columns=trainer.train_dataset.column_names
    )
    trainer.train_dataset = stream.with_format("torch")
    trainer.data_collator = trainer.train_data_collator = V2BatchSamplerDataCollatorForSeq2Seq(
        trainer.processing_class, padding=True
    )
    return trainer


HOSTS = [
    pytest.param(trl_trainer, id="trl"),
    pytest.param(axolotl_trainer, id="axolotl", marks=pytest.mark.axolotl),
]


def losses(trainer: Any) -> dict[int, dict[str, float]]:
    """The loss and PACT's metrics of each step, as logged."""
    return {
        entry["step"]: {k: v for k, v in entry.items() if k == "loss" or k.startswith("pact/")}
        for entry in trainer.state.log_history
        if "pact/kl" in entry
    }


def moves_below(trainer: Any) -> None:
    """Has each step change the model below the trainer's adapter, as one that merges does."""
    step = trainer.training_step

    def merging(*args: Any, **kw: Any) -> Any:
        with torch.no_grad():
            trainer.model.get_base_model().model.layers[0].mlp.up_proj.weight += 0.01
        return step(*args, **kw)

    trainer.training_step = merging


def config(folder: Path, **settings: Any) -> PactConfig:
    return PactConfig(cache_dir=folder / "cache", **{"safety_tokens": TOKENS, "anchors": 0, "eval": False, **settings})


def model_of(adapter: str, checkpointing: bool = False) -> Any:
    if adapter == "vision":
        model, _ = vision.gemma3()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("language_model" in name)
        return model
    model = quantised() if adapter == "qlora" else tiny.llama()
    if adapter != "full":
        torch.manual_seed(0)
        model = get_peft_model(model, LORA)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def quantised() -> Any:
    """The tiny model with bitsandbytes' 4-bit layers, as QLoRA trains on."""
    with TemporaryDirectory() as folder:
        quantisation = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
        return LlamaForCausalLM.from_pretrained(tiny.save(folder), quantization_config=quantisation)
