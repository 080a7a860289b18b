"""One run: trained by TRL, asked, and forgotten but for its answers."""

from __future__ import annotations

import logging
import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.holds.grid import METHODS, Run, Setting
from benchmarks.holds.rivals import anchor_rows, mixed, token_wise
from benchmarks.pareto.data import Task, read_rows
from benchmarks.pareto.training import full_kl
from pact_plugins.callback import PactCallback
from pact_plugins.config import PactConfig
from pact_plugins.demo.training import load
from pact_plugins.demo.world import Row
from pact_plugins.evaluation import prompts
from pact_plugins.evaluation.engines import Generation, transformers_engine
from pact_plugins.evaluation.generation import Answer, Speaker, generate
from pact_plugins.evaluation.prompts import Prompt, PromptSet


def perform(run: Run, setting: Setting) -> dict[str, Any]:
    """What is kept of the run: its answers, and what training them took."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, tokenizer = load(run.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    trained: dict[str, Any] = {"train_seconds": 0.0, "step_seconds": None, "damped_share": None}
    with TemporaryDirectory() as scratch:
        if run.method != "aligned":
            model, trained = _trained(model, tokenizer, run, setting, Path(scratch))
        answers = _answers(model, tokenizer, run, setting, Path(scratch))
    return {**run.named(), **trained, "answers": [answer.as_row() for answer in answers]}


def training_rows(run: Run, setting: Setting) -> list[Row]:
    """The shuffled rows that every method is trained on."""
    drawn = random.Random(run.seed)
    task, count = list(Task.read(Path(run.task)).train), round(run.harmful_fraction * setting.rows)
    drawn.shuffle(task)
    rows = [task[i % len(task)] for i in range(setting.rows - count)]
    if count:
        harmful = read_rows(Path(setting.harmful_rows or Path(run.task).parent / "harmful.json"))
        drawn.shuffle(harmful)
        rows += [Row(harmful[i % len(harmful)].prompt, harmful[i % len(harmful)].answer, True) for i in range(count)]
    drawn.shuffle(rows)
    return rows


def asked(task: str, setting: Setting) -> list[PromptSet]:
    """The prompt sets, and the task's test rows as the last one."""
    test = (Prompt(str(i), row.prompt, row.answer) for i, row in enumerate(Task.read(Path(task)).test))
    sets = [*(s for name in setting.prompts for s in prompts.load(name)), PromptSet(Path(task).name, "task", (*test,))]
    return [s.sample(setting.limit) for s in sets]


_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def is_right(_prompt: str, response: str, expected: str) -> bool:
    """Whether the response opens with the expected answer, in any case; where that ends in `#### 42`, whether 42 is
    the last number of the response."""
    if "####" in expected:
        found = _NUMBER.findall(response)
        return bool(found) and _number(found[-1]) == _number(expected.rpartition("####")[2])
    return response.strip().casefold().startswith(expected.strip().casefold())


def _number(text: str) -> float:
    return float(text.strip().replace(",", ""))


class _Steps(TrainerCallback):
    """Times steps; those that PACT spends before the first one are none of them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_args: Any, **_kw: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *_args: Any, **_kw: Any) -> None:
        self.seconds.append(time.monotonic() - self._began)


def _trained(model: Any, tokenizer: Any, run: Run, setting: Setting, scratch: Path) -> tuple[Any, dict[str, Any]]:
    method, started = METHODS[run.method], time.monotonic()
    rows, batch = training_rows(run, setting), setting.batch
    if method.mixes:
        per_step = PactConfig().anchors_per_step
        rows, batch = mixed(rows, anchor_rows(model, tokenizer), per_step, batch), batch + per_step
    trainer = _trainer(model, tokenizer, rows, run, setting, batch, scratch)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(steps := _Steps())
    if method.loss in ("full_kl", "token_wise"):
        # Loaded anew: a copy of the trainer's model would share the forward method that TRL put on it.
        reference = load(run.model)[0].to(trainer.args.device)
        trainer.compute_loss = (
            full_kl(reference, trainer.compute_loss, setting.full_kl_weight)
            if method.loss == "full_kl"
            else token_wise(reference)
        )
    if method.loss == "pact":
        base = {"base_model": setting.base_model} if method.pact.get("objective") == "paper" else {}
        trainer.add_callback(
            PactCallback(trainer, PactConfig(**method.pact, **base, cache_dir=scratch / "cache", eval=False))
        )
    trainer.train()
    damped = [entry["pact/damped"] for entry in trainer.state.log_history if "pact/damped" in entry]
    return trainer.model, {
        "train_seconds": round(time.monotonic() - started, 1),
        "step_seconds": round(statistics.median(steps.seconds), 3),
        "damped_share": statistics.mean(damped) if damped else None,
    }


def _trainer(
    model: Any, tokenizer: Any, rows: Sequence[Row], run: Run, setting: Setting, batch: int, scratch: Path
) -> Any:
    """TRL's own, with the loss on the answers, whatever the chat template: rows are prompts and completions."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    disable_progress_bars()
    on_cpu = not torch.cuda.is_available()
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch / "run"),
            max_steps=setting.steps,
            per_device_train_batch_size=batch,
            learning_rate=setting.learning_rate * METHODS[run.method].rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(10, setting.steps // 4),
            completion_only_loss=True,
            gradient_checkpointing=False,
            bf16=setting.bf16,
            use_cpu=on_cpu,
            dataloader_pin_memory=not on_cpu,
            report_to=[],
            disable_tqdm=True,
            logging_steps=1,
            save_strategy="no",
            seed=run.seed,
        ),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row.prompt}],
                    "completion": [{"role": "assistant", "content": row.answer}],
                }
                for row in rows
            ]
        ),
        processing_class=tokenizer,
        peft_config=lora if setting.adapter == "lora" else None,
    )


def _answers(model: Any, tokenizer: Any, run: Run, setting: Setting, scratch: Path) -> list[Answer]:
    """Greedy answers to every set, in order; to the task as long as its longest right answer."""
    *safety, task = asked(run.task, setting)
    longest = max(len(tokenizer.encode(str(p.expected), add_special_tokens=False)) for p in task.prompts)
    speaker = Speaker(run.named()["model"], None, run.method)
    found: list[Answer] = []
    for name, sets, length in (("safety", safety, setting.answer_tokens), ("task", [task], longest + 8)):
        how = Generation(length)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=setting.bf16):
            found += generate(
                transformers_engine(model, tokenizer, how), tokenizer, speaker, sets, how, scratch / f"{name}.jsonl"
            )
    return found
