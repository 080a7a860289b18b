"""Intervals, paired tests and agreement against published values, and against SciPy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pact_plugins.evaluation.statistics import (
    PairedChange,
    bootstrap_interval,
    cohen_kappa,
    mcnemar,
    paired_difference_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(count: int, total: int, low: float, high: float) -> None:
    """Prevents an interval of another method: the values are those of Newcombe (1998), Table I, method 3."""
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_and_holds_its_share(pair: tuple[int, int]) -> None:
    """Prevents bounds outside [0, 1], or an interval that depends on which of two outcomes is counted."""
    count, total = pair
    low, high = wilson_interval(count, total)
    assert 0 <= low <= count / total <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(wilson_interval(total - count, total))


@pytest.mark.parametrize(("count", "total"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(count: int, total: int) -> None:
    """Prevents an interval of nothing, which would read as a measured 0%."""
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(count, total)


@pytest.mark.axolotl
def test_wilson_equals_scipy() -> None:
    """Prevents a slip in the formula that a few published values do not show."""
    stats: Any = import_module("scipy.stats")  # which Axolotl brings along
    for total in (1, 7, 128):
        for count in range(total + 1):
            expected = stats.binomtest(count, total).proportion_ci(0.95, method="wilson")
            assert wilson_interval(count, total) == pytest.approx(tuple(expected), abs=1e-12)


def test_paired_difference_as_published() -> None:
    """Prevents an interval of unpaired shares: 38 of 50 before and 48 after, 2 lost and 12 gained (Newcombe, 1998)."""
    found = paired_difference_interval(38, 48, PairedChange(2, 12, 1.0), 50)
    assert found == pytest.approx((0.0569, 0.3404), abs=5e-5)
    backwards = paired_difference_interval(48, 38, PairedChange(12, 2, 1.0), 50)
    assert backwards == pytest.approx((-found[1], -found[0]))


def test_paired_difference_of_nothing_changed() -> None:
    """Prevents an interval without width where all prompts count, which a handful of them would satisfy."""
    low, high = paired_difference_interval(20, 20, PairedChange(0, 0, 1.0), 20)
    assert (low, high) == pytest.approx((-0.1611, 0.1611), abs=5e-5)


def changed(lost: int, gained: int) -> tuple[list[bool], list[bool]]:
    before = [True] * lost + [False] * gained + [True] * 5 + [False] * 3
    after = [False] * lost + [True] * gained + [True] * 5 + [False] * 3
    return before, after


def test_mcnemar_by_hand() -> None:
    """Prevents a one-sided p, or one that the unchanged prompts dilute: 2 (1 + 10) / 2^10 for 9 losses and a gain."""
    result = mcnemar(*changed(9, 1))
    assert (result.lost, result.gained) == (9, 1)
    assert result.p_value == pytest.approx(22 / 1024)
    assert mcnemar(*changed(0, 0)).p_value == mcnemar(*changed(4, 4)).p_value == 1.0


def test_mcnemar_with_many_changes() -> None:
    """Prevents an overflow where 2^n leaves the range of a float."""
    assert mcnemar(*changed(3000, 0)).p_value == 0.0
    assert 0.2 < mcnemar(*changed(1530, 1470)).p_value < 0.4


@pytest.mark.axolotl
def test_mcnemar_equals_the_binomial_test() -> None:
    """Prevents a slip in the sum that one value does not show."""
    stats: Any = import_module("scipy.stats")  # which Axolotl brings along
    for lost in range(12):
        for gained in range(12 - lost):
            if lost + gained:
                expected = stats.binomtest(lost, lost + gained).pvalue
                assert mcnemar(*changed(lost, gained)).p_value == pytest.approx(expected)


def test_unpaired_answers_are_refused() -> None:
    """Prevents a paired test of answers to different prompts."""
    with pytest.raises(ValueError, match="shorter"):
        mcnemar([True, False], [True])


def both(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (yes_yes + yes_no) + [False] * (no_yes + no_no)
    second = [True] * yes_yes + [False] * yes_no + [True] * no_yes + [False] * no_no
    return first, second


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # Feinstein and Cicchetti (1990), J Clin Epidemiol 43:543: 85 agreements of 100 each, kappa far apart
        ((40, 9, 6, 45), 0.70),
        ((80, 10, 5, 5), 0.32),
        ((50, 0, 0, 50), 1.0),
        ((0, 50, 50, 0), -1.0),
        ((25, 25, 25, 25), 0.0),
    ],
)
def test_kappa_as_published(table: tuple[int, int, int, int], kappa: float) -> None:
    """Prevents plain agreement being sold as agreement beyond chance."""
    assert cohen_kappa(*both(*table)) == pytest.approx(kappa, abs=5e-3)


def test_kappa_without_any_difference_is_undefined() -> None:
    """Prevents a division by zero, or a kappa of 0 or 1 that nothing was measured for."""
    assert cohen_kappa([True, True], [True, True]) is None
    assert cohen_kappa([True, True], [False, False]) == 0.0
    with pytest.raises(ValueError, match="no answers"):
        cohen_kappa([], [])


def test_bootstrap() -> None:
    """Prevents an interval of the values in the place of their mean, or another one each time."""
    values = list(np.random.default_rng(1).uniform(0, 1, 400))
    low, high = bootstrap_interval(values)
    error = 1.96 * np.std(values) / 20  # what the normal approximation gives
    assert low == pytest.approx(np.mean(values) - error, abs=0.1 * error)
    assert high == pytest.approx(np.mean(values) + error, abs=0.1 * error)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])
