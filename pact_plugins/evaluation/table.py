"""An evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.evaluation.measure import Measurement, Rate
from pact_plugins.evaluation.records import record_of
from pact_plugins.evaluation.run import Evaluation


def show(evaluation: Evaluation, console: Console | None = None) -> None:
    """Prints rates with their 95% intervals and the errors of their judges, the judges' agreement, and the warnings."""
    console = console or Console()
    say = partial(console.print, highlight=False, markup=False)
    paired = evaluation.against is not None
    say(f"{evaluation.against} (before), {evaluation.model} (after)" if paired else str(evaluation.model))
    for (name, kind), group in groupby(evaluation.measurements, key=lambda m: (m.prompt_set, m.kind)):
        lines = list(group)
        console.print(_table(name, kind, lines, paired))
        # Below each table: with a column of its own, before and after would no longer fit 80 characters.
        for judge in dict.fromkeys(m.judge for m in lines):
            if (record := record_of(judge)) is not None:
                say(f"{judge} {record}, on models left out of its training")
    for a in evaluation.agreements:
        say(a.words(a.when if paired else ""))
    for line in (*evaluation.notes, *(f"Warning: {line}" for line in evaluation.warnings)):
        say(line)


def _table(name: str, kind: str, lines: Sequence[Measurement], paired: bool) -> Table:
    table = Table(
        title=escape(f"{name}: {lines[0].model.total} {kind} prompts"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("measure")
    table.add_column("judge", overflow="fold")
    headers = ("before", "after", "lost/gained,\nchange", "p") if paired else ("rate",)
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for m in lines:
        cells = [m.measure.removesuffix("_rate").replace("_", " "), escape(m.judge or "")]
        if m.against is not None and m.change is not None:
            change = (f"{m.change.lost}/{m.change.gained}", f"{m.change.p_value:.2g}")
            table.add_row(*cells, _interval(m.against), _interval(m.model), *change)
        else:
            table.add_row(*cells, _interval(m.model))
    return table


def _interval(rate: Rate) -> str:
    return escape(f"{rate.share:.1%} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]")
