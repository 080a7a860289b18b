"""The demo: fine-tunes the tiny aligned model on a task with harmful rows, with and without PACT, and compares."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import ProgressCallback
from transformers.utils.logging import disable_progress_bar

from pact_plugins.config import PactConfig
from pact_plugins.demo import BASE_MODEL, world
from pact_plugins.demo.behaviour import Rates, behaviour_of, judge, rates
from pact_plugins.demo.training import Recipe, load, train
from pact_plugins.errors import missing_extra
from pact_plugins.evaluation.measure import Judged
from pact_plugins.run.callback import PactCallback
from pact_plugins.run.report.contents import Contents, Training
from pact_plugins.run.report.files import training_of
from pact_plugins.run.report.write import Written, check_installed, write_report

ROWS, HARMFUL_FRACTION = 1600, 0.1

METHODS: dict[str, PactConfig | None] = {
    "sft": None,
    "paper": PactConfig(objective="paper", base_model=str(BASE_MODEL)),
    "confidence": PactConfig(objective="confidence", conflict="keep", anchors=0),
    "default": PactConfig(),
}
"""What is compared: name and settings; None is plain fine-tuning, the last is `pact: true`."""

IN_WORDS = {
    "aligned": "the shipped model, untouched",
    "sft": "plain fine-tuning",
    "paper": "`objective: paper`",
    "confidence": "`objective: confidence` without damping and anchors",
    "default": "`pact: true`",
}

LEAD = {"aligned": "untouched", "sft": "plain fine-tuning", "default": "pact: true"}
"""Who comes first in the report, and is in the README's picture."""


@dataclass(frozen=True, kw_only=True)
class Result(Rates):
    """One run, measured on held-out prompts."""

    name: str
    objective: str | None
    train_seconds: float


def run(folder: Path, *, seed: int = 0, steps: int = Recipe.steps) -> list[Result]:
    """Trains and evaluates every method; writes the report into `folder`, and each run into one in it.

    Raises:
        PactError: TRL or what the report needs is not installed.
    """
    if find_spec("trl") is None:
        raise missing_extra("trl", "all", "the demo")
    check_installed()
    folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    results: list[Result] = []
    judged: dict[str, list[Judged]] = {}
    trainings: list[Training] = []
    recipe, rows = Recipe(steps=steps, seed=seed), world.fine_tuning_rows(ROWS, HARMFUL_FRACTION, seed=seed)
    model, tokenizer = load()
    judged["aligned"] = judge(model, tokenizer, "aligned")
    results.append(Result(name="aligned", objective=None, train_seconds=0.0, **asdict(rates(judged["aligned"]))))
    for name, config in METHODS.items():
        Console().rule(f"{name}: {steps} steps")
        model, tokenizer = load()
        started = time.monotonic()
        trainer = train(model, tokenizer, rows, recipe, folder / name, partial(_accompany, config=config))
        seconds = round(time.monotonic() - started, 1)
        trainer.save_model()
        judged[name] = judge(trainer.model, tokenizer, name)
        objective = config.objective if config else None
        results.append(Result(name=name, objective=objective, train_seconds=seconds, **asdict(rates(judged[name]))))
        trainings.append(training_of(folder / name, name) if config else Training(name, trainer.state.log_history))
    behaviour = behaviour_of(judged, IN_WORDS)
    contents = Contents("Did the refusals hold? The demo", tuple(trainings), behaviour, lead=LEAD)
    runs = [asdict(r) for r in results]
    write_report(contents, folder, seed=seed, steps=steps, harmful_fraction=HARMFUL_FRACTION, runs=runs)
    return results


class _Steps(ProgressCallback):
    """The trainer's bar without its log: the report has it."""

    def on_log(self, *_args: Any, **_kw: Any) -> None: ...


class _Protection(PactCallback):
    """PACT for a run that is asked here: on more prompts, and beside those without PACT."""

    def __init__(self, trainer: Any, config: PactConfig) -> None:
        super().__init__(trainer, config.model_copy(update={"eval": False}))

    def announce(self, written: Written) -> None:
        """The comparison's report is the one to read."""


def _accompany(trainer: Any, config: PactConfig | None) -> None:
    if sys.stderr.isatty():
        trainer.add_callback(_Steps())
    if config is not None:
        trainer.add_callback(_Protection(trainer, config))


def show(results: list[Result], folder: Path) -> None:
    """The runs as a table, and where their report is."""
    table = Table(title=f"{HARMFUL_FRACTION:.0%} harmful rows, LoRA, held-out prompts", title_justify="left")
    for header in ("run", "refusals", "affirmative openings", "over-refusal", "task accuracy"):
        table.add_column(header, justify="left" if header == "run" else "right")
    for r in results:
        rates = (r.refusal_rate, r.affirmative_opening_rate, r.over_refusal_rate, r.task_accuracy)
        table.add_row(r.name, *(f"{rate:.1%}" for rate in rates))
    console = Console()
    console.print(table)
    console.print("; ".join(f"{name}: {words}" for name, words in IN_WORDS.items()), highlight=False)
    console.print(f"Report: {folder / 'report.html'}")
