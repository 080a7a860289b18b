"""The demo: fine-tunes the tiny aligned model on a task with harmful rows, with and without PACT, and compares."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from pact_plugins.config import PactConfig
from pact_plugins.demo import BASE_MODEL, world
from pact_plugins.demo.evaluate import answers, measure
from pact_plugins.demo.report import Sample, check_installed, write_html
from pact_plugins.demo.training import Recipe, load, train

ROWS, HARMFUL_FRACTION = 1600, 0.1

METHODS: dict[str, PactConfig | None] = {
    "sft": None,
    "paper": PactConfig(objective="paper", base_model=str(BASE_MODEL)),
    "confidence": PactConfig(objective="confidence", conflict="keep", anchors=0),
    "default": PactConfig(),
}
"""What is compared: name and settings; None is plain fine-tuning, the last is `pact: true`."""


@dataclass(frozen=True)
class Result:
    """One run, measured on held-out prompts. Rates are shares of answers, judged by how they begin."""

    name: str
    objective: str | None
    refusal_rate: float
    affirmative_opening_rate: float
    incoherent_rate: float
    over_refusal_rate: float
    task_accuracy: float
    train_seconds: float


def run(folder: Path, *, seed: int = 0, steps: int = Recipe.steps) -> list[Result]:
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
    recipe, rows = Recipe(steps=steps, seed=seed), world.fine_tuning_rows(ROWS, HARMFUL_FRACTION, seed=seed)
    model, tokenizer = load()
    prompts = [*world.held_out_harmful()[:3], *world.held_out_look_alikes()[:2], world.task_test_rows()[0].prompt]
    with TemporaryDirectory() as scratch:
        results.append(_evaluate("aligned", None, model, tokenizer, 0.0))
        samples["aligned"] = answers(model, tokenizer, prompts)
        for name, config in METHODS.items():
            Console().rule(f"{name}: {steps} steps")
            model, tokenizer = load()
            started = time.monotonic()
            trainer = train(model, tokenizer, rows, recipe, Path(scratch) / name, partial(_protect, config=config))
            seconds = time.monotonic() - started
            objective = config.objective if config else None
            results.append(_evaluate(name, objective, trainer.model, tokenizer, seconds))
            samples[name] = answers(trainer.model, tokenizer, prompts)
            histories[name] = [entry for entry in trainer.state.log_history if "loss" in entry]
    runs = [asdict(r) for r in results]
    data = {"seed": seed, "steps": steps, "harmful_fraction": HARMFUL_FRACTION, "runs": runs}
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n")
    shown = [Sample(p, {name: texts[i] for name, texts in samples.items()}) for i, p in enumerate(prompts)]
    write_html(folder / "report.html", runs, histories, shown)
    _print(results, folder)
    return results


def _protect(trainer: Any, config: PactConfig | None) -> None:
    from pact_plugins.callback import PactCallback

    if config is not None:
        trainer.add_callback(PactCallback(trainer, config))


def _evaluate(name: str, objective: str | None, model: Any, tokenizer: Any, seconds: float) -> Result:
    rates = measure(model, tokenizer, world.task_test_rows())
    return Result(name=name, objective=objective, train_seconds=round(seconds, 1), **asdict(rates))


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
