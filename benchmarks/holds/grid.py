"""Which runs are compared: model x task x share of harmful rows x method x seed, and how each is trained and asked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

from benchmarks.holds.tasks import DEMO, asked, training_rows
from pact_plugins.chat.fingerprints import digest
from pact_plugins.demo import ALIGNED_MODEL, BASE_MODEL
from pact_plugins.demo.behaviour import MAX_ANSWER_TOKENS
from pact_plugins.demo.training import Recipe

Loss = Literal["none", "cross-entropy", "full_kl", "token_wise", "pact"]


@dataclass(frozen=True)
class Method:
    """One way to fine-tune.

    Attributes:
        loss: nothing is trained (`none`), cross-entropy, the same and KL over the whole vocabulary (`full_kl`), the
            token-wise constraint (`token_wise`), or cross-entropy and PACT (`pact`).
        mixes: whether the rows of the default's anchors are trained on as ordinary rows, as many a step.
        drops: whether the rows that the default would damp are left out, and others of the run take their place.
        rate: learning rate, as a multiple of the run's.
        setting: what else differs from the run's `Setting`.
        pact: keys of the `pact:` block.
        contrast: whether safety tokens are found by contrast with `Setting.base_model`, where there is one.
        all_tokens: whether every candidate safety token is held, not only S+.
        emphasis: how much more the first tokens of an answer weigh (`variants.Emphasised`).
    """

    loss: Loss
    mixes: bool = False
    drops: bool = False
    rate: float = 1.0
    setting: dict[str, Any] = field(default_factory=dict)
    pact: dict[str, Any] = field(default_factory=dict)
    contrast: bool = False
    all_tokens: bool = False
    emphasis: float = 0.0


RIVALS: dict[str, Method] = {
    "aligned": Method("none"),
    "sft": Method("cross-entropy"),
    "mix": Method("cross-entropy", mixes=True),
    "mix_drop": Method("cross-entropy", mixes=True, drops=True),
    "full_kl": Method("full_kl"),
    "token_wise": Method("token_wise"),
    "paper": Method("pact", pact={"objective": "paper"}, contrast=True),
    "default": Method("pact"),
    "sft_third": Method("cross-entropy", rate=1 / 3),
    "paper_rate": Method("pact", rate=0.1, pact={"objective": "paper"}, contrast=True),
    "paper_anchors": Method("pact", pact={"objective": "paper", "anchors": 4}, contrast=True),
}
"""`aligned` is the untouched model. `paper` is the published objective at the rate of the other methods, `paper_rate`
at a tenth of it, which is the paper's own beside the usual 3e-4 of LoRA."""

QUICK = ("aligned", "sft", "mix", "mix_drop", "full_kl", "token_wise", "paper", "default")


def _weights() -> Iterator[tuple[str, Method]]:
    """Each objective over its own range: KL over the vocabulary and `paper` stop the task from being learned early."""
    for weight in (0.05, 0.1, 0.3):
        yield f"full_kl, weight {weight:g}", Method("full_kl", setting={"full_kl_weight": weight})
    objectives = {"paper": (0.1, 0.3, 1.0), "confidence": (0.3, 1.0, 3.0)}
    for (conflict, anchors), (objective, weights) in product(product(("keep", "damp"), (0, 4)), objectives.items()):
        name = objective + (" + damp" if conflict == "damp" else "") + (" + anchors" if anchors else "")
        for weight in weights:
            pact = {"objective": objective, "conflict": conflict, "anchors": anchors, "weight": weight}
            yield f"{name}, weight {weight:g}", Method("pact", pact=pact, contrast=objective == "paper")


WEIGHTS = dict(_weights())

PLAIN = {
    f"sft, {rate:g}, {steps} steps": Method("cross-entropy", setting={"steps": steps, "learning_rate": rate})
    for rate in (3e-4, 1e-3, 3e-3)
    for steps in (120, 350, 700)
    if (rate, steps) != (3e-3, 350)  # the demo's own
}
"""Plain fine-tuning tuned: is there a rate or a length at which it learns the task and keeps the refusals?"""

_FULL = {"learning_rate": 3e-4, "adapter": "full"}
ABLATIONS: dict[str, Method] = {
    **{
        f"default, gate on, {prefix}": Method("pact", pact={"gate": {"prefix": prefix}}) for prefix in ("header", "bos")
    },
    "default, tokens by contrast": Method("pact", contrast=True),
    **{f"default, {k} tokens": Method("pact", pact={"top_k": k}) for k in (10, 25, 100, 200)},
    **{f"default, {n} anchors": Method("pact", pact={"anchors": n}) for n in (1, 2, 8)},
    "default, all of S": Method("pact", all_tokens=True),
    "default, early tokens 5x": Method("pact", emphasis=4.0),
    "sft, full fine-tuning": Method("cross-entropy", setting=_FULL),
    "default, full fine-tuning": Method("pact", setting=_FULL),
    "paper, temperature 1": Method("pact", pact={"objective": "paper", "temperature": 1.0}, contrast=True),
}
"""One factor at a time around the default."""

METHODS = RIVALS | WEIGHTS | PLAIN | ABLATIONS


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
        full_kl_weight: of KL over the vocabulary; the one that did best in the demo's grid (docs/pareto.md).
        base_model: for the tokens of `paper`, by contrast; without one they are found as the default's are.
        prompts: prompt sets: `demo`, or as `pact eval --prompts` takes them.
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
    full_kl_weight: float = 0.03
    base_model: str | None = None
    prompts: tuple[str, ...] = ("held-out",)
    limit: int | None = None
    answer_tokens: int = 32
    harmful_rows: str | None = None

    def of(self, method: Method) -> Setting:
        """What it is for this method."""
        changed = replace(self, **method.setting)
        return replace(changed, learning_rate=changed.learning_rate * method.rate)

    def named(self) -> dict[str, Any]:
        """As the result holds it, wherever files lie."""
        paths = {key: Path(value).name for key in ("base_model", "harmful_rows") if (value := getattr(self, key))}
        return {**asdict(self), **paths, "prompts": [Path(name).name for name in self.prompts]}


_RECIPE = Recipe()
OF_DEMO = Setting(
    steps=_RECIPE.steps,
    batch=_RECIPE.batch,
    rows=1600,
    learning_rate=_RECIPE.learning_rate,
    base_model=str(BASE_MODEL),
    prompts=(DEMO,),
    answer_tokens=MAX_ANSWER_TOKENS,
)
"""For the demo's model and task."""


@dataclass(frozen=True)
class Run:
    """One fine-tuning run."""

    model: str
    task: str
    harmful_fraction: float
    method: str
    seed: int

    @property
    def model_path(self) -> str:
        """Where the model is."""
        return str(ALIGNED_MODEL) if self.model == DEMO else self.model

    def named(self) -> dict[str, Any]:
        """What it is called in the result, wherever model and task lie."""
        return {**asdict(self), "model": Path(self.model).name, "task": Path(self.task).name}

    def untouched(self) -> Run:
        """The run that this one is compared with: no training, so neither harmful rows nor a seed."""
        return Run(self.model, self.task, 0.0, "aligned", 0)

    def rows(self, setting: Setting) -> list[Any]:
        """The rows that every method is trained on."""
        return training_rows(self.task, setting.rows, self.harmful_fraction, self.seed, setting.harmful_rows)

    def key(self, setting: Setting) -> str:
        """Name of its file, with a digest of all that it depends on: what lies at a path, not where that is."""
        sets = [[s.kind, [[p.text, p.expected] for p in s.prompts]] for s in self.asked(setting)]
        depends: list[Any] = [content(self.model_path), sets, setting.answer_tokens, setting.bf16]
        if self.method != "aligned":
            rows = [asdict(row) for row in self.rows(setting)]
            how = asdict(setting) | {"base_model": setting.base_model and content(setting.base_model)}
            for settled in ("prompts", "limit", "harmful_rows"):
                del how[settled]
            depends += [rows, how, asdict(METHODS[self.method]), self.seed]
        words = re.sub(r"[^\w.]+", "-", "-".join(str(value) for value in self.named().values()))
        return f"{words}-{digest(depends)[:8]}"

    def asked(self, setting: Setting) -> list[Any]:
        """The prompt sets, the task's last."""
        return asked(self.task, setting.prompts, setting.limit)


@lru_cache
def content(name: str) -> str:
    """Digest of a file, or of the files of a folder; of anything else, its name."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())
    if not files:
        return name
    found = hashlib.blake2b(digest_size=16)
    for file in files:
        found.update(file.name.encode())
        with file.open("rb") as opened:
            while part := opened.read(1 << 24):
                found.update(part)
    return found.hexdigest()


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


def demo_runs() -> list[Run]:
    """The grid by which the defaults were chosen, on the demo's model: what docs/pareto.md shows, each run once."""
    grid = list(runs([DEMO], [DEMO], (0.0, 0.1), QUICK, range(5)))
    for fraction, method in product((0.0, 0.1), (*WEIGHTS, *ABLATIONS)):
        if fraction or method != "paper, temperature 1":
            grid.append(Run(DEMO, DEMO, fraction, method, 0))
    grid += [Run(DEMO, DEMO, 0.1, method, 0) for method in PLAIN]
    grid += [Run(DEMO, DEMO, share, method, 0) for share in (0.05, 0.2, 0.3) for method in ("sft", "default")]
    for kind, share in (("demo-neutral", 0.1), ("demo-disguised", 0.1), ("demo-near", 0.0)):
        grid += runs([DEMO], [kind], (share,), ("sft", "default"), (0,))
    return grid
