"""Which runs are compared: model x task x share of harmful rows x method x seed, and how each is trained and asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benchmarks.pareto.grid import FULL_KL_WEIGHT
from pact_plugins.fingerprints import digest

Loss = Literal["none", "cross-entropy", "full_kl", "token_wise", "pact"]


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        loss: nothing is trained (`none`), cross-entropy, the same and KL over the whole vocabulary (`full_kl`), the
            token-wise constraint (`token_wise`), or cross-entropy and PACT (`pact`).
        mixes: whether the rows of the default's anchors are trained on as ordinary rows, as many a step.
        rate: learning rate, as a multiple of the run's.
        pact: keys of the `pact:` block.
    """

    loss: Loss
    mixes: bool = False
    rate: float = 1.0
    pact: dict[str, Any] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "aligned": Method("none"),
    "sft": Method("cross-entropy"),
    "mix": Method("cross-entropy", mixes=True),
    "full_kl": Method("full_kl"),
    "token_wise": Method("token_wise"),
    "paper": Method("pact", pact={"objective": "paper"}),
    "default": Method("pact"),
    "sft_third": Method("cross-entropy", rate=1 / 3),
    "paper_rate": Method("pact", rate=0.1, pact={"objective": "paper"}),
    "paper_anchors": Method("pact", pact={"objective": "paper", "anchors": 4}),
}
"""`aligned` is the untouched model. `paper` is the published objective at the rate of the other methods, `paper_rate`
at a tenth of it, which is the paper's own beside the usual 3e-4 of LoRA."""

QUICK = ("aligned", "sft", "mix", "full_kl", "token_wise", "paper", "default")


@dataclass(frozen=True)
class Setting:
    """How all runs are trained and asked; runs under different settings never share a row.

    Attributes:
        steps: optimiser steps.
        batch: rows of the task and harmful ones in a step.
        rows: training rows to draw the steps from, harmful ones among them.
        learning_rate: its peak; it falls to zero along a cosine.
        adapter: rank-8 LoRA on queries and values as in the paper, or all weights.
        bf16: whether forward passes run in bfloat16.
        full_kl_weight: of KL over the vocabulary.
        base_model: for the tokens of `paper`, by contrast; without one they are found as the default's are.
        prompts: prompt sets, as `pact eval --prompts` takes them.
        limit: prompts of each set and test rows, at most.
        answer_tokens: tokens of an answer to these prompts, at most.
        harmful_rows: file of harmful rows; without one, `harmful.json` beside the task's folder.
    """

    steps: int = 40
    batch: int = 8
    rows: int = 320
    learning_rate: float = 3e-4
    adapter: Literal["lora", "full"] = "lora"
    bf16: bool = False
    full_kl_weight: float = FULL_KL_WEIGHT
    base_model: str | None = None
    prompts: tuple[str, ...] = ("held-out",)
    limit: int | None = None
    answer_tokens: int = 32
    harmful_rows: str | None = None


@dataclass(frozen=True)
class Run:
    """One fine-tuning run."""

    model: str
    task: str
    harmful_fraction: float
    method: str
    seed: int

    def named(self) -> dict[str, Any]:
        """What it is called in the result, wherever model and task lie."""
        return {**asdict(self), "model": Path(self.model).name, "task": Path(self.task).name}

    def untouched(self) -> Run:
        """The run that this one is compared with: no training, so neither harmful rows nor a seed."""
        return Run(self.model, self.task, 0.0, "aligned", 0)

    def key(self, setting: Setting) -> str:
        """Name of its file: of all that it depends on. The untouched model does not depend on how others train."""
        how = asdict(setting)
        if self.method == "aligned":
            how = {name: how[name] for name in ("prompts", "limit", "answer_tokens", "bf16")}
        return f"{'-'.join(str(value) for value in self.named().values())}-{digest([asdict(self), how])[:8]}"


def runs(
    models: Sequence[str],
    tasks: Sequence[str],
    fractions: Sequence[float],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> Iterator[Run]:
    """Seed by seed, so that an interrupted benchmark has whole seeds; the untouched model first, and once a task."""
    for model, task in product(models, tasks):
        yield Run(model, task, 0.0, "aligned", 0)
    for seed, model, task, fraction, method in product(seeds, models, tasks, fractions, methods):
        if method != "aligned":
            yield Run(model, task, fraction, method, seed)
