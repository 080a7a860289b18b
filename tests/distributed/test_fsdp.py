"""FSDP2 over two processes, in the groupings that accelerate makes, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pact_plugins.errors import PactError
from tests.distributed.sharded import Case, Result, alone, in_two_processes, train

pytestmark = pytest.mark.distributed

ALIKE = [
    Case("root"),
    Case("root", tied=True),
    Case("root", silent=True),
    Case("tail"),
    Case("tail", tied=True),
    Case("tail", silent=True),
    Case("tail", adapter="lora"),
    Case("tail", adapter="head"),
    Case("root", adapter="lora"),
    Case("root", adapter="head", silent=True),
    Case("head", adapter="lora"),
    Case("head", adapter="lora", silent=True),
]
MIXED = Case("tail", precision=torch.bfloat16)
CASES = [*ALIKE, MIXED, Case("head")]


def sharded(model: Any, case: Case) -> Any:
    """`root`: accelerate's grouping up to 1.13. `tail`: the later one. `head`: the head by itself."""
    policy = MixedPrecisionPolicy(param_dtype=case.precision) if case.precision else MixedPrecisionPolicy()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in base.model.layers:
        fully_shard(layer, mp_policy=policy)
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if case.layout == "tail":
        if not case.tied:
            fully_shard(embedding, mp_policy=policy)
        tail = [base.model.norm, *([embedding] if case.tied else []), head]
        fully_shard(tail, mp_policy=policy, reshard_after_forward=False)
    if case.layout == "head":
        fully_shard(head, mp_policy=policy)
    fully_shard(model, mp_policy=policy, reshard_after_forward=case.layout != "tail")
    return alone(model, case)


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
    both = in_two_processes(run_all, tmp_path_factory.mktemp("fsdp"), CASES)
    return {case: list(pair) for case, pair in zip(CASES, zip(*both, strict=True), strict=True)}


@pytest.mark.parametrize("case", ALIKE, ids=str)
def test_training_equals_one_process(case: Case, results: dict[Case, list[Any]], tmp_path: Path) -> None:
    """Prevents: a reference, a loss or gradients from pieces of the weights, under a loss that looks plausible."""
    expected = train(Case(None, case.adapter, case.tied, case.silent), tmp_path, alone)
    for found in results[case]:
        assert isinstance(found, Result), found
        found.check_equals(expected)
    assert results[case][0].trained == results[case][1].trained


def test_a_trained_head_by_itself_is_refused(results: dict[Case, list[Any]]) -> None:
    """Prevents: a head that is trained on a part of the safety term's gradient."""
    for found in results[Case("head")]:
        assert isinstance(found, str)
        assert "taken apart" in found


def test_mixed_precision_is_near_the_exact_run(results: dict[Case, list[Any]], tmp_path: Path) -> None:
    """Prevents: logits in another precision than those that the model itself computes."""
    expected = train(Case(None), tmp_path, alone)
    for found in results[MIXED]:
        assert found.fingerprint == expected.fingerprint
        assert found.losses == pytest.approx(expected.losses, rel=5e-2)
        assert found.profile == pytest.approx(expected.profile, rel=0.2, abs=2e-2)
    assert results[MIXED][0].trained == results[MIXED][1].trained
