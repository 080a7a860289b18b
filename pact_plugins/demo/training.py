"""One fine-tuning run of the demo, through TRL; the callback is all that differs between the methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.demo.world import Row


@dataclass(frozen=True)
class Recipe:
    """How the demo fine-tunes.

    Attributes:
        steps: optimiser steps.
        learning_rate: its peak; it falls to zero along a cosine.
        lora: rank-8 LoRA on the queries and values as in the paper, or full fine-tuning.
        batch: rows of a step.
        seed: of the order of rows and of the adapter.
    """

    steps: int = 350
    learning_rate: float = 3e-3
    lora: bool = True
    batch: int = 16
    seed: int = 0


ARGUMENTS: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "report_to": [],
    "disable_tqdm": True,
    "save_strategy": "no",
}
"""Of every training of the demo's model: on a CPU, in full precision, and silent."""


def load(path: str | Path = ALIGNED_MODEL) -> tuple[Any, Any]:
    """The model at `path` in full precision, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(path)


def train(
    model: Any, tokenizer: Any, rows: Sequence[Row], recipe: Recipe, folder: Path, protect: Callable[[Any], object]
) -> Any:
    """Fine-tunes `model` on `rows` and gives the trainer, whose model is the trained one.

    Args:
        rows: prompts and answers; the loss is on the answers.
        protect: is given the trainer before it trains.
    """
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    disable_progress_bars()  # four bars of a blink each
    messages = [[{"role": "user", "content": r.prompt}, {"role": "assistant", "content": r.answer}] for r in rows]
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            assistant_only_loss=True,
            logging_steps=min(10, recipe.steps),
            seed=recipe.seed,
            **ARGUMENTS,
        ),
        train_dataset=Dataset.from_dict({"messages": messages}),
        processing_class=tokenizer,
        peft_config=lora if recipe.lora else None,
    )
    trainer.remove_callback(PrinterCallback)  # who calls shows what it would print
    protect(trainer)
    trainer.train()
    return trainer
