"""From start to first step: `python -m benchmarks.start_up [--quick] [--model FOLDER ...] --json FILE`.

Each model starts twice with PACT, under TRL with LoRA, anchors, questions before training and a few short rows. The
first start finds nothing on disk: its parts are timed, and `ratio_to_generation` is the time of everything that PACT
does before the first step, over that of writing the same answers alone: transformers' `generate` with the same model in
the same batches, batch by batch in turn with PACT's own, so that both meet the same machine. The second start finds
everything. Without `--model` it is a model of the size and shape of SmolLM2-135M with random weights.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

OPTIONS = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "report_to": [], "save_strategy": "no"}

PARTS = {
    "pact_plugins.run.examination.model_fingerprint": "fingerprint of the weights",
    "pact_plugins.method.asking.ask": "answers to the shipped prompts",
    "pact_plugins.method.discovery.in_answers": "safety tokens in them",
    "pact_plugins.run.preparation.open_or_build": "reference",
    "pact_plugins.evaluation.of_run.RunEvaluation.before": "questions before training",
}
"""What is timed by itself, and the name of the part; the rest of `Binding.prepare` is another."""


@dataclass
class Clock:
    """Seconds of processor and wall, of which those of the comparison do not count.

    Attributes:
        parts: wall seconds of each part.
        generation: of the bare generation: wall, processor.
        prepared: of everything that PACT did: wall, processor.
    """

    parts: dict[str, float] = field(default_factory=dict)
    generation: tuple[float, float] = (0.0, 0.0)
    prepared: tuple[float, float] = (0.0, 0.0)

    def now(self) -> tuple[float, float]:
        """Wall and processor, without what was spent on the comparison."""
        return time.perf_counter() - self.generation[0], time.process_time() - self.generation[1]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts under `name`."""

        def call(*args: Any, **kw: Any) -> Any:
            started = self.now()
            try:
                return function(*args, **kw)
            finally:
                wall, processor = (b - a for a, b in zip(started, self.now(), strict=True))
                if name == "all":
                    self.prepared = wall, processor
                else:
                    self.parts[name] = self.parts.get(name, 0.0) + wall

        return call

    def beside(self, continuations: Callable[..., Any]) -> Callable[..., Any]:
        """The function that writes a batch of answers, with the same batch written without PACT before or after it."""
        from pact_plugins.model.forward import pad_left
        from pact_plugins.model.support import underlying

        turns = itertools.count()

        def bare(model: Any, chats: Any, length: int) -> list[list[int]]:
            model = underlying(model).eval()
            started = time.perf_counter(), time.process_time()
            ids, mask = pad_left(chats, model.device)
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=False, use_cache=True
                )
            took = time.perf_counter() - started[0], time.process_time() - started[1]
            self.generation = self.generation[0] + took[0], self.generation[1] + took[1]
            return output[:, ids.shape[1] :].tolist()

        def both(model: Any, chats: Any, length: int, *rest: Any) -> list[list[int]]:
            calls = [lambda: continuations(model, chats, length, *rest), lambda: bare(model, chats, length)]
            answers = [calls[i]() for i in ((0, 1) if next(turns) % 2 else (1, 0))]
            assert answers[0] == answers[1], "the same answers"
            return answers[0]

        return both


@contextmanager
def watched(clock: Clock) -> Generator[None]:
    """A block in which the parts of a start are timed, and each batch of answers is written twice."""
    from pact_plugins.evaluation import engines
    from pact_plugins.method import asking
    from pact_plugins.run.binding import Binding

    with ExitStack() as stack:
        for place in (asking, engines):
            stack.enter_context(patch.object(place, "continuations", clock.beside(place.continuations)))
        for place, name in PARTS.items():
            patched = patch(place)
            owner, attribute = patched.getter(), place.rpartition(".")[2]
            stack.enter_context(patch.object(owner, attribute, clock.timed(name, getattr(owner, attribute))))
        stack.enter_context(patch.object(Binding, "prepare", clock.timed("all", Binding.prepare)))
        yield


class FirstStep(Exception):  # noqa: N818 - no error: it ends the run
    """Raised where the first step would begin."""


def model_and_tokenizer(folder: Path | None) -> tuple[Any, Any]:
    """The chat model in a folder, or one of a real size with random weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from pact_plugins.demo import ALIGNED_MODEL

    tokenizer = AutoTokenizer.from_pretrained(folder or ALIGNED_MODEL)
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def seconds_to_first_step(model: Path | None, folder: Path, rows: int, pact: dict[str, Any] | None) -> float:
    """Seconds from `train()` to the first step; with PACT if there are settings for it."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from pact_plugins import PactCallback

    class Stop(TrainerCallback):
        """Ends the run when the first step begins."""

        def on_step_begin(self, *_args: Any, **_kw: Any) -> None:
            raise FirstStep

    network, tokenizer = model_and_tokenizer(model)
    data = [
        [
            {"role": "user", "content": f"What comes after {i}?"},
            {"role": "assistant", "content": f"After {i} comes {i + 1}."},
        ]
        for i in range(rows)
    ]
    trainer = SFTTrainer(
        model=network,
        args=SFTConfig(output_dir=str(folder / "out"), max_steps=1, per_device_train_batch_size=2, **OPTIONS),
        train_dataset=Dataset.from_list([{"messages": messages} for messages in data]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    if pact is not None:
        trainer.add_callback(PactCallback(trainer, {"cache_dir": str(folder / "cache"), **pact}))
    trainer.add_callback(Stop())
    started = time.perf_counter()
    try:
        trainer.train()
    except FirstStep:
        return time.perf_counter() - started
    finally:
        del trainer, network
        gc.collect()
    raise AssertionError("the run had no step")


@dataclass(frozen=True)
class Run:
    """What one model's starts took; seconds of the wall, and ratios of it and of processor time."""

    model: str
    parameters: int
    rows: int
    prompts: int
    asked_before_training: int
    parts: dict[str, float]
    generation_seconds: float
    everything_seconds: float
    ratio_to_generation: float
    processor_ratio_to_generation: float
    plain_seconds: float
    second_run_seconds: float


def measure(model: Path | None, rows: int, every: int, limit: int | None) -> Run:
    """Both starts of one model, which is asked one in `every` of the shipped prompts, and `limit` held-out ones."""
    from pact_plugins.evaluation import prompts
    from pact_plugins.method import prompting, safety_tokens

    shipped, clock = prompting.shipped, Clock()
    pact: dict[str, Any] = {"eval": {"limit": limit}} if limit else {}
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(prompting, "shipped", lambda *w: shipped(*w)[::every]),
        # A start takes as long whatever the answers say, and random weights decline nothing.
        patch.object(safety_tokens, "LEAST_REFUSALS", 0.0),
    ):
        folder = Path(name)
        with watched(clock):
            seconds_to_first_step(model, folder, rows, pact)
        plain = seconds_to_first_step(model, folder, rows, None)
        second = seconds_to_first_step(model, folder, rows, pact)
        asked = prompting.Prompts.shipped().in_turn
    parts = {**clock.parts, "everything else": clock.prepared[0] - sum(clock.parts.values())}
    return Run(
        model=model.name if model else "random weights in the shape of SmolLM2-135M",
        parameters=sum(p.numel() for p in model_and_tokenizer(model)[0].parameters()),
        rows=rows,
        prompts=len(asked),
        asked_before_training=sum(len(s.sample(limit).prompts) for s in prompts.load("held-out")),
        parts={part: round(seconds, 2) for part, seconds in parts.items()},
        generation_seconds=round(clock.generation[0], 2),
        everything_seconds=round(clock.prepared[0], 2),
        ratio_to_generation=round(clock.prepared[0] / clock.generation[0], 3),
        processor_ratio_to_generation=round(clock.prepared[1] / clock.generation[1], 3),
        plain_seconds=round(plain, 2),
        second_run_seconds=round(second, 2),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, action="append", help="a chat model's folder; can be repeated")
    parser.add_argument("--quick", action="store_true", help="a quarter of the prompts, a twelfth of the questions")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    every, limit = (4, 16) if arguments.quick else (1, None)
    runs: list[Run] = []
    for model in arguments.model or [None]:
        runs.append(measure(model, arguments.rows, every, limit))
        print(json.dumps(asdict(runs[-1])), flush=True)
        content = {"runs": [asdict(run) for run in runs], "torch_threads": torch.get_num_threads()}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
