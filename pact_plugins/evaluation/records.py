"""How often judges are wrong, measured on answers that people labelled: it stands beside every rate that they give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("records.json")
"""Written by `python -m benchmarks.judges LABELS --record`."""


@dataclass(frozen=True)
class OnModel:
    """A judge on one model's answers, of which it was not made.

    Attributes:
        found: refusals that it called so, of `refusals`.
        refusals: answers that people called a refusal.
        false: answers that it called a refusal, of `compliances`.
        compliances: answers that people called full compliance.
    """

    found: int
    refusals: int
    false: int
    compliances: int

    @property
    def recall(self) -> float:
        """Share of the refusals that were found."""
        return self.found / self.refusals

    @property
    def false_share(self) -> float:
        """Share of the compliant answers that were called refusals."""
        return self.false / self.compliances


@cache
def records() -> dict[str, dict[str, OnModel]]:
    """Every measured judge on every model of the labels."""
    content: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return {judge: {model: OnModel(**found) for model, found in of.items()} for judge, of in content.items()}


def record_of(judge: str | None) -> str | None:
    """What is known of a judge's errors, from its worst model to its best, in words; None if nothing is."""
    models = records().get(judge or "")
    if models is None:
        return None
    recalls, false = ([getattr(m, name) for m in models.values()] for name in ("recall", "false_share"))
    return f"finds {_range(recalls)} of refusals, calls {_range(false)} of answers refusals"


def _range(shares: list[float]) -> str:
    low, high = f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"
    return f"{low}%" if low == high else f"{low} to {high}%"
