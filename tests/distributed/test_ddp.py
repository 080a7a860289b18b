"""DDP: several processes make the updates that one process makes, and log what it logs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed.processes import fork, run
from tests.distributed.training import CASES

pytestmark = pytest.mark.distributed

HOSTS = [
    pytest.param("trl", marks=pytest.mark.trl),
    pytest.param("axolotl", marks=pytest.mark.axolotl),
]


@pytest.fixture(scope="module", params=HOSTS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """What one process found, and what each of two found."""
    one, two = (
        run("training:train", tmp_path_factory.mktemp(f"{n}-ranks"), ranks=n, begin=fork, host=request.param)
        for n in (1, 2)
    )
    return one[0], two


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_one_process(runs: tuple[Any, list[Any]], case: str) -> None:
    """Prevents: a safety term that counts twice, or half, or leaves out a rank's rows, once there are several ranks."""
    one, two = runs
    expected, _ = one[case]
    assert len(expected) == 2
    for found, _ in (rank[case] for rank in two):
        for step, target in zip(found, expected, strict=True):
            assert step.keys() == target.keys()
            assert any(gradient.abs().max() > 1e-3 for gradient in target.values())
            for name, gradient in step.items():
                torch.testing.assert_close(gradient, target[name], rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("case", CASES)
def test_metrics_equal_one_process(runs: tuple[Any, list[Any]], case: str) -> None:
    """Prevents: a log that tells of one rank's rows as if they were all."""
    one, two = runs
    _, expected = one[case]
    assert len(expected) == 2
    for _, logged in (rank[case] for rank in two):
        for entry, target in zip(logged, expected, strict=True):
            of_rows = {"pact/kl", "pact/answer_tokens", "pact/cache_hits"}
            assert entry.keys() == target.keys() >= ({"pact/anchor_kl"} if case == "pairs" else of_rows)
            assert entry == pytest.approx(target, rel=1e-4, abs=1e-6)
