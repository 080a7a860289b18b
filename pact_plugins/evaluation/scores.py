"""Mean scores of judges that grade answers, beside the rates of all judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pact_plugins.evaluation.layouts import Kind
from pact_plugins.evaluation.measure import Judged, Run, by_set
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.evaluation.statistics import bootstrap_interval


@dataclass(frozen=True)
class Mean:
    """A mean with its 95% bootstrap interval.

    Attributes:
        mean: of scores between 0 and 1, or of their differences.
        low: lower bound.
        high: upper bound.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class MeanScore:
    """What one judge gave the answers to one set.

    Attributes:
        prompt_set: what was asked.
        kind: of the set.
        judge: who graded.
        model: mean score of the model.
        against: mean score of the other model, if there is one.
        change: mean difference from the other model to this one, on the same prompts.
    """

    prompt_set: str
    kind: Kind
    judge: str
    model: Mean
    against: Mean | None
    change: Mean | None


def mean_scores(sets: Sequence[PromptSet], judged: Mapping[Run, Sequence[Judged]]) -> list[MeanScore]:
    """Mean scores of harmful sets, for every judge that grades. Incoherent answers keep the score they were given."""
    found: list[MeanScore] = []
    for s, runs in by_set(sets, judged):
        for judge in runs["model"][0].scores if s.kind == "harmful" else ():
            after = [j.scores[judge] for j in runs["model"]]
            before = [j.scores[judge] for j in runs["against"]] if "against" in runs else None
            found.append(
                MeanScore(
                    s.name,
                    s.kind,
                    judge,
                    _mean(after),
                    _mean(before) if before else None,
                    _mean([a - b for a, b in zip(after, before, strict=True)]) if before else None,
                )
            )
    return found


def _mean(values: Sequence[float]) -> Mean:
    return Mean(sum(values) / len(values), *bootstrap_interval(values))
