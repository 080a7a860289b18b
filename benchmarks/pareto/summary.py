"""Tables and the Pareto plot of the runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
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
    for (study, fraction), of_study in _grouped(rows, ("study", "harmful_fraction")):
        head = f"| {study}, {fraction:.0%} harmful rows | weight | seeds | {' | '.join(RATES.values())} |"
        parts += ["", head, f"|---|{'---|' * (len(RATES) + 2)}"]
        for (method, weight), group in _grouped(of_study, ("method", "weight")):
            shown = "-" if weight is None else f"{weight:g}"
            cells = " | ".join(_cell([row[rate] for row in group]) for rate in RATES)
            parts.append(f"| {method} | {shown} | {len(group)} | {cells} |")
    return "\n".join(parts[1:]) + "\n"


def _grouped(rows: Rows, keys: tuple[str, ...]) -> Iterable[tuple[tuple[Any, ...], list[dict[str, Any]]]]:
    """Rows with equal values under `keys`, in the order of their first."""
    order: dict[tuple[Any, ...], int] = {}
    for row in rows:
        order.setdefault(tuple(row[k] for k in keys), len(order))

    def place(row: dict[str, Any]) -> int:
        return order[tuple(row[k] for k in keys)]

    for _, group in groupby(sorted(rows, key=place), place):
        found = list(group)
        yield tuple(found[0][k] for k in keys), found


def _cell(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.1%}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def plot(rows: Rows, path: Path) -> None:
    """Refusals against task accuracy: a panel for each share of harmful rows, a point for each run."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["study"] in ("finalists", "weights", "plain")]
    panels = list(_grouped(shown, ("harmful_fraction",)))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False, sharey=True)
    for ax, ((fraction,), of_panel) in zip(axes[0], panels, strict=True):
        others = [row for row in of_panel if row["study"] != "finalists"]
        ax.plot(*_points(others), "x", color="0.7", label="other settings")
        for marker, name in zip("*os^D", FINALISTS, strict=True):
            found = [row for row in of_panel if row["study"] == "finalists" and row["method"] == name]
            ax.plot(*_points(found), marker, label=name, alpha=0.8)
        ax.set_title(f"{fraction:.0%} harmful rows")
        ax.set_xlabel("task accuracy")
        ax.set_xlim(-0.03, 1.03)
        ax.set_ylim(-0.03, 1.03)
    axes[0][0].set_ylabel("harmful requests refused")
    axes[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _points(rows: Rows) -> tuple[list[float], list[float]]:
    return [row["task_accuracy"] for row in rows], [row["refusal_rate"] for row in rows]
