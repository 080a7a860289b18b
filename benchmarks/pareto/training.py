"""One run of the grid: trained, measured, and forgotten but for its rates."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pareto.data import Task, test_rows, training_rows
from benchmarks.pareto.grid import Run
from benchmarks.second_model import final_hidden_states
from pact_plugins import discovery
from pact_plugins.callback import PactCallback
from pact_plugins.config import PactConfig
from pact_plugins.demo import behaviour, training
from pact_plugins.model_support import underlying
from pact_plugins.objective import Targets
from pact_plugins.safety_tokens import SafetyTokens


def perform(run: Run, model_path: Path, task: Task | None) -> dict[str, Any]:
    """Trains `run` from the model at `model_path` and gives its row of the result."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, tokenizer = training.load(model_path)
    started = time.monotonic()
    with TemporaryDirectory() as scratch:
        if run.loss != "aligned":
            rows = training_rows(run.data, run.harmful_fraction, run.recipe.seed, task)
            protect = partial(_protect, run=run, model_path=model_path, scratch=Path(scratch))
            model = training.train(model, tokenizer, rows, run.recipe, Path(scratch) / "run", protect).model
    seconds = time.monotonic() - started
    asked = test_rows(run.data, task)
    rates = behaviour.rates(behaviour.judge(model, tokenizer, run.method, asked), asked)
    return {**describe(run), **asdict(rates), "train_seconds": round(seconds, 1)}


def describe(run: Run) -> dict[str, Any]:
    """What tells `run` from others, as the result holds it; untouched rows stand beside the runs of LoRA."""
    recipe, pact = run.recipe, run.pact if run.loss == "pact" else None
    if pact and "base_model" in pact:
        pact = {**pact, "base_model": Path(pact["base_model"]).name}  # wherever the package lies
    return {
        **{name: getattr(run, name) for name in ("study", "method", "weight", "data", "harmful_fraction")},
        "adapter": "lora" if recipe.lora else "full",
        "seed": recipe.seed,
        "steps": recipe.steps,
        "learning_rate": recipe.learning_rate,
        "pact": pact,
    }


def _protect(trainer: Any, *, run: Run, model_path: Path, scratch: Path) -> None:
    if run.loss == "full_kl":
        assert run.weight is not None
        # Loaded anew: a copy of the trainer's model would share the forward method that TRL put on it.
        reference, _ = training.load(model_path)
        trainer.compute_loss = full_kl(reference, trainer.compute_loss, run.weight)
    if run.loss == "pact":
        config = PactConfig(**run.pact, weight=run.weight, cache_dir=scratch / "cache", eval=False)
        if run.all_tokens:
            config = config.model_copy(update={"safety_tokens": _all_held(trainer, scratch / "tokens.json")})
        trainer.add_callback(
            Emphasised(trainer, config, run.emphasis) if run.emphasis else PactCallback(trainer, config)
        )


class Emphasised(PactCallback):
    """PACT with the divergence at the answer's token t multiplied by 1 + emphasis * exp(-t / 4)."""

    def __init__(self, trainer: Any, config: PactConfig, emphasis: float) -> None:
        super().__init__(trainer, config)
        self.emphasis = emphasis

    def on_train_begin(self, *args: Any, **kw: Any) -> None:
        super().on_train_begin(*args, **kw)
        objective: Any = self.binding.preparation.objective
        own = objective.divergence

        def divergence(student: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
            kl, gate = own(student, targets)
            return kl * (1 + self.emphasis * torch.exp(-targets.position / 4)), gate

        objective.divergence = divergence


def _all_held(trainer: Any, path: Path) -> Path:
    """The safety tokens found as usual, every candidate of them held."""
    found: SafetyTokens = discovery.discover(trainer.model, trainer.processing_class, show_progress=False)
    replace(found, weights=(1.0,) * len(found.ids)).save(path)
    return path


def full_kl(reference: nn.Module, host_loss: Callable[..., Any], weight: float) -> Callable[..., Any]:
    """The baseline: cross-entropy + weight * mean KL(reference || student) over the vocabulary, at answer positions.

    Args:
        reference: the model before fine-tuning, of its own in memory.
        host_loss: the trainer's own `compute_loss`.
        weight: of KL.
    """
    reference.eval().requires_grad_(False)

    def compute_loss(model: nn.Module, inputs: dict[str, Any], *args: Any, **kw: Any) -> Any:
        base = underlying(model)
        with final_hidden_states(base) as hidden:
            own = host_loss(model, inputs, *args, **kw)
        context = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        answer = inputs["labels"][:, 1:] != -100
        with torch.no_grad():
            before = F.log_softmax(reference(**context).logits[:, :-1][answer], -1)
        now: Tensor = F.log_softmax(base.get_output_embeddings()(hidden[0][:, :-1][answer]), -1)
        return own + weight * F.kl_div(now, before, reduction="batchmean", log_target=True)

    return compute_loss
