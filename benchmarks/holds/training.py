"""One run: trained by TRL, asked, and forgotten but for its answers."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks.holds.grid import METHODS, Method, Run, Setting
from benchmarks.holds.rivals import anchor_rows, full_kl, mixed, token_wise, undamped
from benchmarks.holds.variants import Emphasised, all_held
from pact_plugins.config import PactConfig
from pact_plugins.demo.training import load
from pact_plugins.demo.world import Row
from pact_plugins.evaluation.engines import Generation, transformers_engine
from pact_plugins.evaluation.generation import Answer, Speaker, generate
from pact_plugins.run.callback import PactCallback


def perform(run: Run, setting: Setting, cache: Path) -> dict[str, Any]:
    """What is kept of the run: its answers, and what training them took.

    Args:
        run: what to do.
        setting: how.
        cache: folder in which runs share what PACT asks the untouched model; `train_seconds` is less where it is found.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    trained: dict[str, Any] = {"train_seconds": 0.0, "step_seconds": None, "damped_share": None}
    with TemporaryDirectory() as scratch:
        if METHODS[run.method].loss == "none":
            model, tokenizer = _load(run)
        else:
            model, tokenizer, trained = _trained(run, setting.of(METHODS[run.method]), Path(scratch), cache)
        answers = _answers(model, tokenizer, run, setting, Path(scratch))
    return {**run.named(), **trained, "answers": [answer.as_row() for answer in answers]}


def performed(run: Run, setting: Setting, cache: Path) -> tuple[Run, dict[str, Any]]:
    """The run, with what is kept of it. Here, since processes that are started anew do not import a `__main__`."""
    return run, perform(run, setting, cache)


def _load(run: Run) -> tuple[Any, Any]:
    model, tokenizer = load(run.model_path)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


class _Steps(TrainerCallback):
    """Times steps; those that PACT spends before the first one are none of them."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, *_args: Any, **_kw: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, *_args: Any, **_kw: Any) -> None:
        self.seconds.append(time.monotonic() - self._began)


def _trained(run: Run, setting: Setting, scratch: Path, cache: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Model, tokenizer, and what training took.

    Where a method needs the model as it was, beside the one that is trained, it is loaded anew: a copy of the
    trainer's would share the forward method that TRL put on it.
    """
    method, started = METHODS[run.method], time.monotonic()
    rows, batch = run.rows(setting), setting.batch
    default = _pact(METHODS["default"], setting, cache)
    if method.drops:
        rows = undamped(_trainer(*_load(run), rows, run, setting, batch, scratch), rows, default)
    if method.mixes:
        per_step, anchors = default.anchors_per_step, anchor_rows(*_load(run), default, setting.bf16)
        rows, batch = mixed(rows, anchors, per_step, batch), batch + per_step
    model, tokenizer = _load(run)
    trainer = _trainer(model, tokenizer, rows, run, setting, batch, scratch)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(steps := _Steps())
    if method.loss == "full_kl":
        trainer.compute_loss = full_kl(_load(run)[0], trainer.compute_loss, setting.full_kl_weight)
    if method.loss == "token_wise":
        trainer.compute_loss = token_wise(_load(run)[0])
    if method.loss == "pact":
        config = _pact(method, setting, cache)
        if method.all_tokens:
            config = config.model_copy(update={"safety_tokens": all_held(trainer, scratch / "tokens.json")})
        callback = Emphasised(trainer, config, method.emphasis) if method.emphasis else PactCallback(trainer, config)
        trainer.add_callback(callback)
    trainer.train()
    damped = [entry["pact/damped"] for entry in trainer.state.log_history if "pact/damped" in entry]
    took = {
        "train_seconds": round(time.monotonic() - started, 1),
        "step_seconds": round(statistics.median(steps.seconds), 3),
        "damped_share": statistics.mean(damped) if damped else None,
    }
    return trainer.model, tokenizer, took


def _pact(method: Method, setting: Setting, cache: Path) -> PactConfig:
    base: dict[str, Any] = {"base_model": setting.base_model} if method.contrast else {}
    return PactConfig(**method.pact, **base, cache_dir=cache, eval=False)


def _trainer(
    model: Any, tokenizer: Any, rows: Sequence[Row], run: Run, setting: Setting, batch: int, scratch: Path
) -> Any:
    """TRL's own, with the loss on the answers: where the chat template marks them, as it does; else on what follows
    the prompt, with all that the template puts behind an answer."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    disable_progress_bars()
    on_cpu, marked = not torch.cuda.is_available(), "endgeneration" in str(tokenizer.chat_template)
    lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    turns = [({"role": "user", "content": r.prompt}, {"role": "assistant", "content": r.answer}) for r in rows]
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch / "run"),
            max_steps=setting.steps,
            per_device_train_batch_size=batch,
            learning_rate=setting.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=min(10, setting.steps // 4),
            assistant_only_loss=marked,
            completion_only_loss=None if marked else True,
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
            [{"messages": [*both]} if marked else {"prompt": [both[0]], "completion": [both[1]]} for both in turns]
        ),
        processing_class=tokenizer,
        peft_config=lora if setting.adapter == "lora" else None,
    )


def _answers(model: Any, tokenizer: Any, run: Run, setting: Setting, scratch: Path) -> list[Answer]:
    """Greedy answers to every set, in order; to the task as long as its longest right answer."""
    *safety, task = run.asked(setting)
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
