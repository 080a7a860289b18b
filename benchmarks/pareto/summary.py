"""Tables and the Pareto plot of the runs."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

Rows = Sequence[dict[str, Any]]

RATES = {
    "refusal_rate": "refusals",
    "affirmative_opening_rate": '"Sure, ..."',
    "incoherent_rate": "incoherent",
    "over_refusal_rate": "over-refusal",
    "task_accuracy": "task accuracy",
}
FINALISTS = ("aligned", "sft", "full_kl", "paper", "default")


def markdown(rows: Rows) -> str:
    """A table for each study and share of harmful rows; means over seeds, with their least and greatest."""
    parts: list[str] = []
    for (study, fraction), of_study in grouped(rows, ("study", "harmful_fraction")):
        head = f"| {study}, {fraction:.0%} harmful rows | weight | seeds | {' | '.join(RATES.values())} |"
        parts += ["", head, f"|---|{'---|' * (len(RATES) + 2)}"]
        for (method, weight), group in grouped(of_study, ("method", "weight")):
            shown = "-" if weight is None else f"{weight:g}"
            cells = " | ".join(cell([row[rate] for row in group]) for rate in RATES)
            parts.append(f"| {method} | {shown} | {len(group)} | {cells} |")
    return "\n".join(parts[1:]) + "\n"


def grouped(rows: Rows, keys: tuple[str, ...]) -> Iterable[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Rows with equal values under `keys`, in the order of their first."""
    order: dict[tuple[Any, ...], int] = {}
    for row in rows:
        order.setdefault(tuple(row[k] for k in keys), len(order))

    def place(row: dict[str, Any]) -> int:
        return order[tuple(row[k] for k in keys)]

    for _, group in groupby(sorted(rows, key=place), place):
        found = list(group)
        yield tuple(found[0][k] for k in keys), found


def cell(values: Sequence[float | None]) -> str:
    """The mean as a percentage, with the least and the greatest of several; a dash where something has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    mean = f"{statistics.mean(known):.1%}"
    return mean if len(known) == 1 else f"{mean} ({100 * min(known):.1f} to {100 * max(known):.1f})"


def plot(rows: Rows, path: Path) -> None:
    """Refusals against task accuracy: a panel for each share of harmful rows, a point for each run."""
    shown = [row for row in rows if row["study"] in ("finalists", "weights", "plain")]
    panels = list(grouped(shown, ("harmful_fraction",)))
    with new_plot(len(panels), path) as axes:
        for ax, ((fraction,), of_panel) in zip(axes, panels, strict=True):
            others = [row for row in of_panel if row["study"] != "finalists"]
            ax.plot(*points(others, "task_accuracy"), "x", color="0.7", label="other settings")
            for marker, name in zip("*os^D", FINALISTS, strict=True):
                found = [row for row in of_panel if row["study"] == "finalists" and row["method"] == name]
                ax.plot(*points(found, "task_accuracy"), marker, label=name, alpha=0.8)
            ax.set_title(f"{fraction:.0%} harmful rows")


@contextmanager
def new_plot(panels: int, path: Path) -> Generator[Sequence[Any]]:
    """The axes of a Pareto plot, for the block to fill; it is written to `path` behind the block."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.5), squeeze=False, sharey=True)
    yield axes[0]
    for ax in axes[0]:
        ax.set_xlabel("task accuracy")
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
    axes[0][0].set_ylabel("harmful requests refused")
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def points(rows: Rows, task: str) -> tuple[list[float], list[float]]:
    """The score of each row, under its key `task`, and its refusals."""
    return [row[task] for row in rows], [row["refusal_rate"] for row in rows]
