"""DeepSpeed ZeRO-2 and ZeRO-3 over two processes, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pact_plugins.errors import PactError
from tests.distributed.sharded import Case, Result, alone, in_two_processes, train

deepspeed: Any = pytest.importorskip("deepspeed", reason="needs DeepSpeed, in an environment of one's own")
pytestmark = pytest.mark.distributed

ALIKE = [
    Case("2"),
    Case("3"),
    Case("3", tied=True),
    Case("3", silent=True),
    Case("3", adapter="lora"),
    Case("3", adapter="head"),
    Case("3", adapter="head", silent=True),
]


def sharded(model: Any, case: Case) -> Any:
    """The raw engine with plain SGD; thresholds of 0 have it take small weights apart too."""
    assert case.layout is not None
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # by default 1
        "zero_optimization": {
            "stage": int(case.layout),
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 20_000,
        },
        "zero_allow_untested_optimizer": True,
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.SGD(trained, lr=0.1), config=settings)
    return engine, engine.backward, engine.step


def run_all(cases: list[Case], folder: Path, rank: int) -> list[Result | str]:
    results: list[Result | str] = []
    for i, case in enumerate(cases):
        try:
            results.append(train(case, folder / f"cache-{rank}-{i}", sharded, rank))
        except PactError as error:
            results.append(str(error))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[Any]]:
    both = in_two_processes(run_all, tmp_path_factory.mktemp("zero"), ALIKE)
    return {case: list(pair) for case, pair in zip(ALIKE, zip(*both, strict=True), strict=True)}


@pytest.mark.parametrize("case", ALIKE, ids=str)
def test_training_equals_one_process(case: Case, results: dict[Case, list[Any]], tmp_path: Path) -> None:
    """Prevents: a reference, a loss or gradients from pieces of the weights, under a loss that looks plausible."""
    expected = train(Case(None, case.adapter, case.tied, case.silent), tmp_path, alone)
    for found in results[case]:
        assert isinstance(found, Result), found
        found.check_equals(expected)
    assert results[case][0].trained == results[case][1].trained
