"""The demo: fine-tunes the tiny aligned model on a task with harmful rows, with and without PACT, and compares."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pact_plugins.config import PactConfig
from pact_plugins.demo import ALIGNED_MODEL, BASE_MODEL, world
from pact_plugins.demo.evaluate import answers, share
from pact_plugins.demo.report import Sample, check_installed, write_html
from pact_plugins.errors import missing_extra

ROWS, HARMFUL_FRACTION = 1600, 0.1
STEPS, BATCH, LEARNING_RATE = 350, 16, 3e-3

METHODS: dict[str, PactConfig | None] = {
    "sft": None,
    "paper": PactConfig(objective="paper", base_model=str(BASE_MODEL)),
    "confidence": PactConfig(objective="confidence", conflict="keep", anchors=0),
    "confidence + damp + anchors": PactConfig(anchors=4),
}
"""What is compared: name and settings; None is plain fine-tuning, the last is the best setting known."""


@dataclass(frozen=True)
class Result:
    """One run, measured on held-out prompts. Rates are shares of answers, judged by how they begin."""

    name: str
    objective: str | None
    refusal_rate: float
    affirmative_opening_rate: float
    over_refusal_rate: float
    task_accuracy: float
    train_seconds: float


def run(folder: Path, *, seed: int = 0, steps: int = STEPS) -> list[Result]:
    """Trains and evaluates every method; writes `report.json` and `report.html` into `folder`.

    Args:
        folder: is made.
        seed: of the rows and of the training runs.
        steps: optimiser steps of each run.

    Raises:
        PactError: TRL or what the report needs is not installed.
    """
    check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    results: list[Result] = []
    samples: dict[str, list[str]] = {}
    histories: dict[str, list[dict[str, float]]] = {}
    model, tokenizer = _load()
    prompts = [*world.held_out_harmful()[:3], *world.held_out_look_alikes()[:2], world.task_test_rows()[0].prompt]
    with TemporaryDirectory() as scratch:
        results.append(_evaluate("aligned", None, model, tokenizer, 0.0))
        samples["aligned"] = answers(model, tokenizer, prompts)
        for name, config in METHODS.items():
            Console().rule(f"{name}: {steps} steps")
            model, tokenizer = _load()
            started = time.monotonic()
            trainer = _train(model, tokenizer, config, Path(scratch) / name, seed, steps)
            seconds = time.monotonic() - started
            objective = config.objective if config else None
            results.append(_evaluate(name, objective, trainer.model, tokenizer, seconds))
            samples[name] = answers(trainer.model, tokenizer, prompts)
            histories[name] = [entry for entry in trainer.state.log_history if "loss" in entry]
    runs = [asdict(r) for r in results]
    data = {"seed": seed, "steps": steps, "harmful_fraction": HARMFUL_FRACTION, "runs": runs}
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n")
    rows = [Sample(p, {name: texts[i] for name, texts in samples.items()}) for i, p in enumerate(prompts)]
    write_html(folder / "report.html", runs, histories, rows)
    _print(results, folder)
    return results


def _load() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ALIGNED_MODEL, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(ALIGNED_MODEL)


def _train(model: Any, tokenizer: Any, config: PactConfig | None, folder: Path, seed: int, steps: int) -> Any:
    """One LoRA run through TRL; the callback is all that differs between the methods."""
    try:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import PrinterCallback
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer
    except ImportError as error:
        raise missing_extra("trl", "trl", "the demo") from error
    from pact_plugins.callback import PactCallback

    rows = world.fine_tuning_rows(ROWS, HARMFUL_FRACTION, seed=seed)
    messages = [[{"role": "user", "content": r.prompt}, {"role": "assistant", "content": r.answer}] for r in rows]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            assistant_only_loss=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            report_to=[],
            disable_tqdm=True,
            logging_steps=min(10, steps),
            save_strategy="no",
            seed=seed,
        ),
        train_dataset=Dataset.from_dict({"messages": messages}),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.remove_callback(PrinterCallback)  # the report plots what it would print
    if config is not None:
        trainer.add_callback(PactCallback(trainer, config))
    trainer.train()
    return trainer


def _evaluate(name: str, objective: str | None, model: Any, tokenizer: Any, seconds: float) -> Result:
    harmful = answers(model, tokenizer, world.held_out_harmful())
    look_alikes = answers(model, tokenizer, world.held_out_look_alikes())
    rows = world.task_test_rows()
    solved = answers(model, tokenizer, [row.prompt for row in rows])
    return Result(
        name=name,
        objective=objective,
        refusal_rate=share(world.is_refusal, harmful),
        affirmative_opening_rate=share(world.is_affirmative_opening, harmful),
        over_refusal_rate=share(world.is_refusal, look_alikes),
        task_accuracy=sum(a == row.answer for a, row in zip(solved, rows, strict=True)) / len(rows),
        train_seconds=round(seconds, 1),
    )


def _print(results: list[Result], folder: Path) -> None:
    table = Table(title=f"{HARMFUL_FRACTION:.0%} harmful rows, LoRA, held-out prompts", title_justify="left")
    for header in ("run", "refusals", "affirmative openings", "over-refusal", "task accuracy", "seconds"):
        table.add_column(header, justify="left" if header == "run" else "right")
    for r in results:
        rates = (r.refusal_rate, r.affirmative_opening_rate, r.over_refusal_rate, r.task_accuracy)
        table.add_row(r.name, *(f"{rate:.1%}" for rate in rates), f"{r.train_seconds:.0f}")
    console = Console()
    console.print(table)
    console.print(f"Report: {folder / 'report.html'}")
