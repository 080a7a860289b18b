"""Both guards of a run without training it: what of the answers is constrained, and whether the reference is right."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.config import PactConfig
from pact_plugins.model.ranks import ALONE
from pact_plugins.run.agreement import Agreement, check_agreement
from pact_plugins.run.coverage import Coverage
from pact_plugins.run.first_batches import first_batches
from pact_plugins.run.host_loss import measure_host_loss
from pact_plugins.run.preparation import prepare
from pact_plugins.run.trainer import Start


@dataclass(frozen=True)
class Guards:
    """What a run would find before its first step.

    Attributes:
        coverage: what of the supervised assistant tokens it constrains.
        agreement: how far the reference is from the model on the trainer's own batches.
        reference: where the reference is, which the run finds again.
        seconds: from the trainer to the first step.
    """

    coverage: Coverage
    agreement: Agreement
    reference: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {**asdict(self), "coverage": self.coverage.as_dict()}


def guards(trainer: Any, config: PactConfig) -> Guards:
    """Does what the run that `trainer` is about to begin would do before its first step, but for its questions.

    Raises:
        PactError: PACT cannot serve the run, or a guard would stop it.
    """
    started = time.perf_counter()
    start = Start.of(trainer, config)
    preparation = prepare(start)
    objective = preparation.objective
    with first_batches(trainer, ALONE) as batches:
        measure_host_loss(trainer, trainer.compute_loss, batches, damps=config.damps)
        agreement = check_agreement(trainer, objective, trainer.compute_loss, batches, start.documents)
    objective.head.remove()
    return Guards(preparation.coverage, agreement, objective.reference.where, time.perf_counter() - started)


def show(found: Guards, console: Console | None = None) -> None:
    """Prints both."""
    table = Table(title="Before the first step", title_justify="left", show_header=False)
    for name, words in (*found.coverage.rows(), *found.agreement.rows(found.seconds)):
        table.add_row(name, escape(words))
    table.add_row("reference", escape(found.reference))
    (console or Console()).print(table)
