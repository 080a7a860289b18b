"""What PACT adds to a training step: `python -m benchmarks.step_cost [--quick] --json FILE [--markdown FILE]`.

Every variant trains the same random-weight Llama (body of about 50M parameters) on the same rows, inside one run of the
host's own trainer: the variants take turns, step by step, in an order drawn anew every round, and the ratio is taken of
the steps of one round. Plain fine-tuning and the second model are compared in runs of their own, since the steps of the
second model leave the next one a machine short of caches. Memory is the peak of the bytes that tensors hold during a
step, of a process for each variant.

Two more figures are sharper than the ratio of seconds on a machine that others use too: the ratio of processor time,
and PACT's own share of a step: after each step of a method, what PACT adds to it (splitting the batch, lookup, the
safety tokens' logits, the loss, and the backward pass of all of them) is done once more by itself and timed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

LENGTH, BATCH, SAFETY_TOKENS = 512, 2, 50
METHODS = ("paper", "confidence")
BASELINES = ("sft", "second_model")


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
    cpu_ratio_median: float
    seconds_median: float
    own_share: float
    own_milliseconds: dict[str, float]


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


def trainer_of(case: Case, steps: int, folder: Path, number: int = 16) -> Any:
    """The host's own trainer, for `steps` steps on `number` rows."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    from pact_plugins.demo import ALIGNED_MODEL

    tokenizer = AutoTokenizer.from_pretrained(ALIGNED_MODEL)
    rows = rows_of(case, number)
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


@dataclass(frozen=True)
class Step:
    """Seconds of one step: by the clock, of the processor (all threads), and of PACT's own work, part by part."""

    clock: float
    cpu: float
    own: dict[str, float]


def own_seconds(objective: Any, batch: dict[str, Any], host_tells: bool) -> dict[str, float]:
    """Seconds of PACT's own work for one batch, on hidden states of the same shape, part by part.

    `host_tells`: whether the host's own loss gives the log-probabilities of the labels.
    """
    weight = objective.head.base.get_output_embeddings().weight
    hidden = torch.randn(*batch["input_ids"].shape, weight.shape[1], requires_grad=True)
    log_probs = None
    if host_tells:
        log_probs = torch.full((len(objective.targets(batch).request.flat),), -5.0, requires_grad=True)
    before, seconds, started = weight.grad, {}, time.perf_counter()

    def done(part: str) -> None:
        seconds[part] = time.perf_counter() - started - sum(seconds.values())

    targets = objective.targets(batch)
    done("split and look up")
    capture = objective.head._capture(hidden, targets.request, log_probs)
    done("logits")
    total = objective.terms([capture], targets).kl / targets.supervised
    done("loss")
    total.backward()
    done("backward")
    weight.grad = before
    return seconds


def host_tells(trainer: Any, plain: Callable[..., Any], objective: Any, batch: dict[str, Any]) -> bool:
    """Whether the host's own loss gives the log-probabilities of the labels, where the objective wants them."""
    trainer.model.train()
    with objective.watch(objective.targets(batch)) as captured:
        plain(trainer.model, dict(batch))
    return objective.head.one(captured).from_host


def run(
    case: Case, variants: tuple[str, ...], rounds: int, around: Callable[[Callable[[], Any]], Any] | None = None
) -> dict[str, list[Step]]:
    """Each step of each variant. The first round warms up and is left out.

    `around` is called with each forward and backward pass, and has to run it.
    """
    from transformers import TrainerCallback

    from pact_plugins import PactConfig
    from pact_plugins.run.binding import Binding

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = trainer_of(case, (rounds + 1) * len(variants), folder)
        plain = trainer.compute_loss
        losses: dict[str, Callable[..., Any]] = {"sft": plain}
        bindings: dict[str, Binding] = {}
        if around is not None:
            own_step = trainer.training_step
            trainer.training_step = lambda *args, **kw: around(lambda: own_step(*args, **kw))
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
                    # The data is drawn at random, and the models of these vocabularies can be asked no prompt.
                    conflict="keep",
                    eval=False,
                ),
            )
            binding.prepare()
            losses[method] = binding.compute_loss
            bindings[method] = binding
            # Taken off again, so that the next one can be bound, but with its hooks: each has turns to come.
            trainer.compute_loss, trainer.log = plain, binding._log
            trainer.pact_binding = None
        if "second_model" in variants:
            from benchmarks.second_model import SecondModel

            objective = bindings["paper"].preparation.objective
            losses["second_model"] = SecondModel(trainer.model, objective.tokens, objective.chat, plain).compute_loss
        done: dict[str, list[Step]] = {v: [] for v in variants}
        batch = dict(next(iter(trainer.get_train_dataloader())))
        told = {m: host_tells(trainer, plain, b.preparation.objective, batch) for m, b in bindings.items()}

        class Turns(TrainerCallback):
            """Gives each step to the variant whose turn it is, and times it."""

            def on_step_begin(self, _args: Any, state: Any, *_rest: Any, **_kw: Any) -> None:
                turn, place = divmod(state.global_step, len(variants))
                self.variant = random.Random(turn).sample(variants, len(variants))[place]
                trainer.compute_loss = losses[self.variant]
                self.clock, self.cpu = time.perf_counter(), time.process_time()

            def on_step_end(self, _args: Any, state: Any, *_rest: Any, **_kw: Any) -> None:
                clock, cpu = time.perf_counter() - self.clock, time.process_time() - self.cpu
                if state.global_step > len(variants):
                    binding = bindings.get(self.variant)
                    own = own_seconds(binding.preparation.objective, batch, told[self.variant]) if binding else {}
                    done[self.variant].append(Step(clock, cpu, own))

        trainer.add_callback(Turns())
        trainer.train()
    return done


def peak_memory(case: Case, variant: str) -> int:
    """Largest number of bytes that tensors hold during the second step of one variant, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (case, variant))


def _peak(case: Case, variant: str) -> int:
    peaks: list[int] = []

    def profiled(step: Callable[[], Any]) -> Any:
        """Runs the step, and replays its allocations, which the profiler of a CPU build reports one by one."""
        alive = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors()}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = step()
        events = sorted((e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.nbytes())
        held = list(itertools.accumulate((size for _, size in events), initial=sum(alive.values())))
        peaks.append(max(held))
        return result

    run(case, (variant,), rounds=1, around=profiled)
    return peaks[-1]


def _tensors() -> Iterator[torch.Tensor]:
    return (o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.layout == torch.strided)


def comparison(case: Case, baseline: str, method: str, done: dict[str, list[Step]], memory: dict[str, int]) -> Row:
    """`method` over `baseline`, from the steps of one run; the interval is that of the middle half of the pairs."""
    median, steps = statistics.median, done[method]
    pairs = list(zip(steps, done[baseline], strict=True))
    ratios = sorted(a.clock / b.clock for a, b in pairs)
    return Row(
        case=str(case),
        baseline=baseline,
        method=method,
        time_ratio_median=round(median(ratios), 4),
        time_ratio_low=round(ratios[len(ratios) // 4], 4),
        time_ratio_high=round(ratios[-1 - len(ratios) // 4], 4),
        memory_ratio=round(memory[method] / memory[baseline], 4),
        pairs=len(ratios),
        cpu_ratio_median=round(median(a.cpu / b.cpu for a, b in pairs), 4),
        seconds_median=round(median(s.clock for s in steps), 3),
        own_share=round(median(sum(s.own.values()) / s.clock for s in steps), 4),
        own_milliseconds={part: round(1000 * median(s.own[part] for s in steps), 2) for part in steps[0].own},
    )


def compare(case: Case, rounds: int, baselines: Sequence[str]) -> list[Row]:
    """Both methods over each baseline."""
    memory = {variant: peak_memory(case, variant) for variant in (*baselines, *METHODS)}
    rows = []
    for baseline in baselines:
        # The second model costs half as much again: fewer rounds tell.
        done = run(case, (baseline, *METHODS), rounds if baseline == "sft" else (rounds + 1) // 2)
        for method in METHODS:
            rows.append(comparison(case, baseline, method, done, memory))
            print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


def markdown(rows: list[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| case | method / baseline | time, median (middle half) | processor time | own share | memory | pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        interval = f"{r.time_ratio_median:.3f} ({r.time_ratio_low:.3f} to {r.time_ratio_high:.3f})"
        shares = [f"{r.cpu_ratio_median:.3f}", f"{r.own_share:.2%}", f"{r.memory_ratio:.3f}"]
        cells = [r.case, f"{r.method} / {r.baseline}", interval, *shares, r.pairs]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    parts = list(rows[0].own_milliseconds)
    lines += ["", f"| own work, ms | {' | '.join(parts)} | of a step |", "|---" * (len(parts) + 2) + "|"]
    for r in rows:
        if r.baseline == "sft":
            cells = [f"{r.case}, {r.method}", *r.own_milliseconds.values(), f"{1000 * r.seconds_median:.0f}"]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="TRL with LoRA at 32k only")
    for name, known in (("hosts", ["trl", "axolotl"]), ("adapters", ["lora", "full"]), ("baselines", [*BASELINES])):
        parser.add_argument(f"--{name}", nargs="+", choices=known, default=known)
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[32_000, 128_000])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each variant that count")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.hosts, arguments.adapters, arguments.vocabularies = ["trl"], ["lora"], [32_000]
    skipped = [host for host in arguments.hosts if not find_spec(host)]
    cases = [
        Case(host, adapter, vocabulary)
        for host in arguments.hosts
        if host not in skipped
        for adapter in arguments.adapters
        for vocabulary in arguments.vocabularies
    ]
    rows = [row for case in cases for row in compare(case, arguments.rounds, arguments.baselines)]
    content = {"cases": [asdict(row) for row in rows], "skipped": skipped, "torch_threads": torch.get_num_threads()}
    arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(markdown(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
