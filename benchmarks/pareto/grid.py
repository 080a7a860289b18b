"""Which runs are compared: methods, weights, ablations around the default, and the limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from benchmarks.pareto.data import Data
from pact_plugins.demo import BASE_MODEL
from pact_plugins.demo.training import Recipe

SEEDS = range(5)
FRACTIONS = (0.0, 0.1)
FULL_KL_WEIGHT = 0.03
"""The weight of full-vocabulary KL that does best in the grid, by the table in docs/pareto.md."""

Loss = Literal["aligned", "sft", "full_kl", "pact"]


@dataclass(frozen=True)
class Run:
    """One fine-tuning run.

    Attributes:
        study: the question that it belongs to: `finalists`, `plain`, `weights`, `ablation` or `limits`.
        method: its name in the tables.
        loss: nothing at all (`aligned`), cross-entropy (`sft`), the same and KL over the whole vocabulary (`full_kl`),
            or the same and PACT (`pact`).
        weight: of KL.
        pact: the other keys of its `pact:` block.
        all_tokens: whether every candidate safety token is held, not only S+.
        emphasis: how much more the first tokens of an answer weigh (`training.Emphasised`).
        data: what the rows are.
        harmful_fraction: share of harmful rows.
        recipe: steps, learning rate, seed.
    """

    study: str
    method: str
    loss: Loss
    weight: float | None = None
    pact: dict[str, Any] = field(default_factory=dict)
    all_tokens: bool = False
    emphasis: float = 0.0
    data: Data = "standard"
    harmful_fraction: float = 0.1
    recipe: Recipe = field(default_factory=Recipe)


PAPER: dict[str, Any] = {"objective": "paper", "base_model": str(BASE_MODEL)}
"""As published: the tokens by contrast with the base model."""


def finalists() -> Iterator[Run]:
    """The methods of the headline table, seed by seed, so that an interrupted benchmark has whole seeds."""
    for fraction in FRACTIONS:
        yield Run("finalists", "aligned", "aligned", harmful_fraction=fraction)
    for seed in SEEDS:
        for fraction in FRACTIONS:
            common = {"harmful_fraction": fraction, "recipe": Recipe(seed=seed)}
            yield Run("finalists", "sft", "sft", **common)
            yield Run("finalists", "full_kl", "full_kl", FULL_KL_WEIGHT, **common)
            yield Run("finalists", "paper", "pact", 1.0, PAPER, **common)
            yield Run("finalists", "default", "pact", 1.0, **common)


def everything() -> list[Run]:
    """The finalists, and what led to them; each run once."""
    runs: dict[str, Run] = {}
    for run in (*finalists(), *_weights(), *_plain(), *_ablations(), *_limits()):
        runs.setdefault(str(replace(run, study="", method="")), run)
    return list(runs.values())


def _plain() -> Iterator[Run]:
    """Plain fine-tuning tuned: is there a rate or a length at which it learns the task and keeps the refusals?"""
    for learning_rate in (3e-4, 1e-3, 3e-3):
        for steps in (120, 350, 700):
            recipe = Recipe(steps, learning_rate)
            yield Run("plain", f"sft, {learning_rate:g}, {steps} steps", "sft", recipe=recipe)


def _weights() -> Iterator[Run]:
    """Each objective over its own range: KL over the vocabulary and `paper` stop the task from being learned early."""
    objectives: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
        "paper": (PAPER, (0.1, 0.3, 1.0)),
        "confidence": ({"objective": "confidence"}, (0.3, 1.0, 3.0)),
    }
    devices = product(("keep", "damp"), (0, 4))
    for fraction in FRACTIONS:
        for weight in (0.03, 0.05, 0.1, 0.3):
            yield Run("weights", "full_kl", "full_kl", weight, harmful_fraction=fraction)
    for (conflict, anchors), fraction, (objective, (settings, weights)) in product(
        devices, FRACTIONS, objectives.items()
    ):
        name = objective + (" + damp" if conflict == "damp" else "") + (" + anchors" if anchors else "")
        for weight in weights:
            pact = {**settings, "conflict": conflict, "anchors": anchors}
            yield Run("weights", name, "pact", weight, pact, harmful_fraction=fraction)


def _ablations() -> Iterator[Run]:
    """One factor at a time around the default."""
    changes: dict[str, dict[str, Any]] = {
        **{f"gate on, {prefix}": {"gate": {"prefix": prefix}} for prefix in ("header", "bos")},
        "tokens by contrast": {"base_model": str(BASE_MODEL)},
        **{f"{k} tokens": {"top_k": k} for k in (10, 25, 100, 200)},
        **{f"{n} anchors": {"anchors": n} for n in (1, 2, 8)},
    }
    for fraction in FRACTIONS:
        for name, change in changes.items():
            yield Run("ablation", f"default, {name}", "pact", 1.0, change, harmful_fraction=fraction)
        yield Run("ablation", "default, all of S", "pact", 1.0, all_tokens=True, harmful_fraction=fraction)
        yield Run("ablation", "default, early tokens 5x", "pact", 1.0, emphasis=4.0, harmful_fraction=fraction)
        full = Recipe(learning_rate=3e-4, lora=False)
        yield Run("ablation", "sft, full fine-tuning", "sft", harmful_fraction=fraction, recipe=full)
        yield Run("ablation", "default, full fine-tuning", "pact", 1.0, harmful_fraction=fraction, recipe=full)
    yield Run("ablation", "paper, temperature 1", "pact", 1.0, {**PAPER, "temperature": 1.0})
    for fraction in (0.05, 0.2, 0.3):
        share = f"{fraction:.0%} harmful rows"
        yield Run("ablation", f"sft, {share}", "sft", harmful_fraction=fraction)
        yield Run("ablation", f"default, {share}", "pact", 1.0, harmful_fraction=fraction)


def _limits() -> Iterator[Run]:
    """Data on which the method has less to go by."""
    kinds: dict[Data, str] = {
        "neutral": "harmful rows that open with a neutral token",
        "disguised": "harmful rows that the reference does not refuse",
        "near": "a task close to what is refused",
    }
    for data, name in kinds.items():
        fraction = 0.0 if data == "near" else 0.1
        yield Run("limits", f"sft, {name}", "sft", data=data, harmful_fraction=fraction)
        yield Run("limits", f"default, {name}", "pact", 1.0, data=data, harmful_fraction=fraction)
