"""What PACT adds to a training step: `python -m benchmarks.step_cost [--quick] --json FILE [--markdown FILE]`.

Every variant trains the same random-weight Llama (body of about 50M parameters) on the same rows, inside one run of the
host's own trainer: the variants take turns, step by step, in an order drawn anew every round, and the ratio is taken of
the steps of one round. Plain fine-tuning and the second model are compared in runs of their own, since the steps of the
second model leave the next one a machine short of caches. Memory is the peak of one process for each variant.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

LENGTH, BATCH, SAFETY_TOKENS = 512, 2, 50
METHODS = ("paper", "confidence")
VARIANTS = ("sft", "second_model", *METHODS)


@dataclass(frozen=True)
class Case:
    """What is trained, and by whom."""

    host: str
    adapter: str
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.host}, {self.adapter}, {self.vocabulary // 1000}k"


@dataclass(frozen=True)
class Row:
    """One comparison: `method` over `baseline`, as ratios."""

    case: str
    baseline: str
    method: str
    time_ratio_median: float
    time_ratio_low: float
    time_ratio_high: float
    memory_ratio: float
    pairs: int
    seconds_median: float
    own_share: float


def model_of(case: Case) -> Any:
    """A random Llama: 16 layers of width 512 are about 51M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    if case.adapter == "lora":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return get_peft_model(model, lora)
    return model


def rows_of(case: Case, number: int) -> list[dict[str, list[int]]]:
    """Random token ids; the second half of each row is its answer."""
    rng = random.Random(0)
    rows = []
    for _ in range(number):
        ids = [rng.randrange(8, case.vocabulary) for _ in range(LENGTH)]
        rows.append({"input_ids": ids, "answer": [int(i >= LENGTH // 2) for i in range(LENGTH)]})
    return rows


def trainer_of(case: Case, steps: int, folder: Path) -> Any:
    """The host's own trainer, for `steps` steps."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from pact_plugins.demo import ALIGNED_MODEL

    tokenizer = AutoTokenizer.from_pretrained(ALIGNED_MODEL)
    rows = rows_of(case, 16)
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-5,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "logging_steps": steps,
        "save_strategy": "no",
        "dataloader_pin_memory": False,
    }
    if case.host == "trl":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"input_ids": r["input_ids"], "completion_mask": r["answer"]} for r in rows])
        args = SFTConfig(**common, max_length=LENGTH, completion_only_loss=True, gradient_checkpointing=False)
        return SFTTrainer(model=model_of(case), args=args, train_dataset=data, processing_class=tokenizer)
    from axolotl.core.trainers.base import AxolotlTrainer
    from axolotl.core.training_args import AxolotlTrainingArguments
    from transformers import DataCollatorForSeq2Seq

    labelled = [
        {
            "input_ids": r["input_ids"],
            "attention_mask": [1] * LENGTH,
            "labels": [i if a else -100 for i, a in zip(r["input_ids"], r["answer"], strict=True)],
        }
        for r in rows
    ]
    return AxolotlTrainer(
        model=model_of(case),
        args=AxolotlTrainingArguments(**common, remove_unused_columns=False),
        train_dataset=Dataset.from_list(labelled),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


class Stopwatch:
    """Seconds spent in wrapped functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kw: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kw)
            self.seconds += time.perf_counter() - started
            return result

        return timed


def run(case: Case, variants: tuple[str, ...], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each step of each variant, and PACT's own part of them (forward only: its backward is not separable).

    The first round warms up and is left out.
    """
    from transformers import TrainerCallback

    from pact_plugins import PactConfig
    from pact_plugins.binding import Binding

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = trainer_of(case, (rounds + 1) * len(variants), folder)
        plain = trainer.compute_loss
        losses: dict[str, Callable[..., Any]] = {"sft": plain}
        bindings: dict[str, Binding] = {}
        watch = Stopwatch()
        # The second model is given the safety tokens of a prepared `paper`.
        needed = {*variants, "paper"} if "second_model" in variants else {*variants}
        for method in [m for m in METHODS if m in needed]:
            binding = Binding(
                trainer,
                PactConfig(
                    objective=method,
                    anchors=0,
                    safety_tokens=[8 + i for i in range(SAFETY_TOKENS)],
                    cache_dir=folder / "cache",
                ),
            )
            objective = binding.prepare().objective
            losses[method] = binding.compute_loss
            bindings[method] = binding
            trainer.compute_loss, trainer.log = plain, binding._log
            trainer.pact_binding = None
            for owner, part in ((objective, "targets"), (objective, "terms"), (objective.head, "_capture")):
                setattr(owner, part, watch.wrap(getattr(owner, part)))
        if "second_model" in variants:
            from benchmarks.second_model import SecondModel

            objective = bindings["paper"].preparation.objective
            losses["second_model"] = SecondModel(trainer.model, objective.tokens, objective.chat, plain).compute_loss
        seconds: dict[str, list[float]] = {v: [] for v in variants}
        own: dict[str, list[float]] = {v: [] for v in variants}

        class Turns(TrainerCallback):
            """Gives each step to the variant whose turn it is, and times it."""

            def on_step_begin(self, _args: Any, state: Any, *_rest: Any, **_kw: Any) -> None:
                turn, place = divmod(state.global_step, len(variants))
                self.variant = random.Random(turn).sample(variants, len(variants))[place]
                trainer.compute_loss = losses[self.variant]
                watch.seconds, self.started = 0.0, time.perf_counter()

            def on_step_end(self, _args: Any, state: Any, *_rest: Any, **_kw: Any) -> None:
                elapsed = time.perf_counter() - self.started
                if state.global_step > len(variants):
                    seconds[self.variant].append(elapsed)
                    own[self.variant].append(watch.seconds)

        trainer.add_callback(Turns())
        trainer.train()
    return seconds, own


def peak_memory(case: Case, variant: str) -> float:
    """Peak resident memory, in bytes, of a process that trains three steps with one variant."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (case, variant))


def _peak(case: Case, variant: str) -> float:
    run(case, (variant,), rounds=2)
    # Not `getrusage`: what a process inherits there is its parent's peak.
    status = Path("/proc/self/status").read_text()
    return 1024 * float(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def compare(case: Case, rounds: int) -> list[Row]:
    """Both methods over both baselines."""
    memory = {variant: peak_memory(case, variant) for variant in VARIANTS}
    rows = []
    for baseline in ("sft", "second_model"):
        # The second model costs half as much again: fewer rounds tell.
        seconds, own = run(case, (baseline, *METHODS), rounds if baseline == "sft" else (rounds + 1) // 2)
        for method in METHODS:
            share = statistics.median(o / s for o, s in zip(own[method], seconds[method], strict=True))
            ratios = sorted(a / b for a, b in zip(seconds[method], seconds[baseline], strict=True))
            # The interval of the middle half of the pairs.
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            rows.append(
                Row(
                    str(case),
                    baseline,
                    method,
                    round(statistics.median(ratios), 4),
                    round(low, 4),
                    round(high, 4),
                    round(memory[method] / memory[baseline], 4),
                    len(ratios),
                    round(statistics.median(seconds[method]), 3),
                    round(share, 4),
                )
            )
            print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| case | method / baseline | time, median (middle half) | memory | PACT's forward share | pairs |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        interval = f"{r.time_ratio_median:.3f} ({r.time_ratio_low:.3f} to {r.time_ratio_high:.3f})"
        cells = [r.case, f"{r.method} / {r.baseline}", interval, f"{r.memory_ratio:.3f}", f"{r.own_share:.1%}", r.pairs]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="TRL with LoRA at 32k only")
    parser.add_argument("--rounds", type=int, default=12, help="steps of each variant that count")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    hosts = ["trl"] if arguments.quick else ["trl", "axolotl"]
    skipped = [host for host in hosts if not find_spec(host)]
    cases = [
        Case(host, adapter, vocabulary)
        for host in hosts
        if host not in skipped
        for adapter in (["lora"] if arguments.quick else ["lora", "full"])
        for vocabulary in ([32_000] if arguments.quick else [32_000, 128_000])
    ]
    rows = [row for case in cases for row in compare(case, arguments.rounds)]
    content = {"cases": [asdict(row) for row in rows], "skipped": skipped, "torch_threads": torch.get_num_threads()}
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
