"""How far a measured rate can be trusted: intervals, paired tests, and agreement beyond chance.

Formulas of a line or two each. SciPy, which no part of a TRL environment needs, is what the tests compare them with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
"""Samples of a bootstrap: its bounds then move by less than a tenth of the interval's width."""


_Z = NormalDist().inv_cdf(0.975)
"""Of every interval here: 95%."""


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's score interval of a share, 95%, without continuity correction.

    With p = count / total and z the normal quantile at 0.975, its bounds are::

        (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

    Unlike p ± z sqrt(p(1-p)/n) it does not collapse to nothing at 0% and 100%, where safety rates live.
    Source: Wilson (1927), JASA 22:209; recommended by Brown, Cai and DasGupta (2001), Statistical Science 16:101.

    Args:
        count: how many of `total` answers count.
        total: at least 1.

    Returns:
        Lower and upper bound, both within [0, 1].

    Raises:
        ValueError: an argument is out of its range.
    """
    if not 0 <= count <= total or total < 1:
        raise ValueError(f"no interval for {count} of {total}")
    z, p = _Z, count / total
    centre = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    # Rounding alone would leave 0 of n at -1e-18, and n of n above 1.
    low = 0.0 if count == 0 else (centre - half) / scale
    high = 1.0 if count == total else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class PairedChange:
    """What became of the same prompts under two models.

    Attributes:
        lost: prompts that counted before and no longer do.
        gained: prompts that count now and did not before.
        p_value: of the exact two-sided McNemar test; 1 where nothing changed.
    """

    lost: int
    gained: int
    p_value: float


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> PairedChange:
    """Exact McNemar test: could losses and gains have come from a fair coin?

    Only the n prompts whose outcome changed say anything; under the null hypothesis each is a loss or a gain with
    probability 1/2. With k the smaller of the two numbers::

        p = min(1, 2 sum_{i<=k} C(n, i) / 2^n)

    Source: McNemar (1947), Psychometrika 12:153; the exact form is the two-sided sign test on the changed pairs.

    Args:
        before: whether each prompt's answer counted, first model; one entry a prompt.
        after: the same prompts in the same order, second model.

    Raises:
        ValueError: the two differ in length.
    """
    pairs = list(zip(before, after, strict=True))
    lost = sum(b and not a for b, a in pairs)
    gained = sum(a and not b for b, a in pairs)
    n = lost + gained
    # Integers throughout: 2^n leaves a float's range from about a thousand changed prompts on.
    tail = sum(math.comb(n, i) for i in range(min(lost, gained) + 1))
    return PairedChange(lost, gained, min(1.0, 2 * tail / 2**n))


def paired_difference_interval(before: int, after: int, change: PairedChange, total: int) -> tuple[float, float]:
    """95% interval of after/total - before/total, both measured on the same prompts.

    With l, u Wilson's bounds of each share, p1 the share after, p2 the share before, and phi the correlation of the
    paired outcomes::

        lower = p1 - p2 - sqrt((p1 - l1)^2 - 2 phi (p1 - l1)(u2 - p2) + (u2 - p2)^2)
        upper = p1 - p2 + sqrt((u1 - p1)^2 - 2 phi (u1 - p1)(p2 - l2) + (p2 - l2)^2)

    phi is taken as 0 where it is 0/0. Source: Newcombe (1998), Statistics in Medicine 17:2635, method 8.

    Args:
        before: prompts that counted before.
        after: prompts that count now.
        change: lost and gained ones among them.
        total: all prompts.
    """
    both, neither = before - change.lost, total - before - change.gained
    scale = math.sqrt(before * (total - before) * after * (total - after))
    phi = (both * neither - change.lost * change.gained) / scale if scale else 0.0
    p1, p2 = after / total, before / total
    (l1, u1), (l2, u2) = wilson_interval(after, total), wilson_interval(before, total)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    return p1 - p2 - reach(p1 - l1, u2 - p2), p1 - p2 + reach(u1 - p1, p2 - l2)


def cohen_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Cohen's kappa: how far two judges agree beyond what their rates alone would give.

    With p_o the share of answers on which they agree, and p_e the share expected of independent judges with the same
    rates, p_e = p1 p2 + (1-p1)(1-p2)::

        kappa = (p_o - p_e) / (1 - p_e)

    1 is full agreement, 0 is chance, negative is worse than chance. None where both judges say the same of every
    answer: chance alone would explain it, and the ratio is 0/0.
    Source: Cohen (1960), Educational and Psychological Measurement 20:37.

    Args:
        first: one judge's verdict on each answer.
        second: the other's, in the same order.

    Raises:
        ValueError: the two differ in length, or there is no answer.
    """
    pairs = list(zip(first, second, strict=True))
    n = len(pairs)
    if not n:
        raise ValueError("no answers to agree on")
    agreed, yes1, yes2 = sum(a == b for a, b in pairs), sum(first), sum(second)
    # In integers, n² p_e against n²: whether the denominator is zero is then exact.
    expected = yes1 * yes2 + (n - yes1) * (n - yes2)
    return None if expected == n * n else (n * agreed - expected) / (n * n - expected)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, 95%.

    The bounds are the quantiles at 0.025 and 0.975 of the means of `RESAMPLES` samples of the same size, drawn with
    replacement under a fixed seed. Where all values are equal it has no width.
    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.

    Args:
        values: at least one.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    data, generator = np.asarray(values), np.random.default_rng(0)
    means = [float(generator.choice(data, len(data)).mean()) for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
