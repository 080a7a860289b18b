"""FSDP2 over two processes, in the groupings that accelerate makes, against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from pact_plugins import PactCallback
from pact_plugins.run.evidence import Evidence
from tests import tiny
from tests.contract import hosts
from tests.distributed.sharded import (
    Case,
    Logged,
    alone,
    check_like_one_process,
    in_two_processes,
    train,
    trained_in_two_processes,
    whole_weights,
)

pytestmark = [
    pytest.mark.distributed,
    # Its collectives ask a CPU for what GPUs alone have there.
    pytest.mark.skipif(Version(torch.__version__).release < (2, 7), reason="torch 2.6 cannot run FSDP2 on a CPU"),
]

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
    Case("adapters", adapter="lora", checkpointing="plain"),
    Case("tail", checkpointing="plain"),
]
MIXED = Case("tail", precision=torch.bfloat16)
CASES = [*ALIKE, MIXED, Case("head")]


def sharded(model: Any, case: Case) -> Any:
    """`root`: accelerate's grouping up to 1.13. `tail`: the later one. `head`, `adapters`: those by themselves."""
    policy = MixedPrecisionPolicy(param_dtype=case.precision) if case.precision else MixedPrecisionPolicy()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if case.layout == "adapters":  # as Axolotl does
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and ".lora_" in name:
                fully_shard(module, mp_policy=policy)
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


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[Any]]:
    return trained_in_two_processes(CASES, sharded, tmp_path_factory.mktemp("fsdp"))


@pytest.mark.parametrize("case", ALIKE, ids=str)
def test_training_equals_one_process(case: Case, results: dict[Case, list[Any]], tmp_path: Path) -> None:
    """Prevents: a reference, a loss or gradients from pieces of the weights, under a loss that looks plausible."""
    check_like_one_process(case, results[case], tmp_path)


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
        assert found.profile == pytest.approx(expected.profile, rel=0.2, abs=3e-2)
    assert results[MIXED][0].trained == results[MIXED][1].trained


def trl_run(layout: str | None, folder: Path, rank: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """TRL's trainer, its own loss and its own loop; on CPU accelerate leaves FSDP out, so the model comes sharded."""
    model: Any = tiny.llama()
    if layout is not None:
        sharded(model, Case(layout))
    size = 2 if layout else 4
    trainer = hosts.trl_trainer(model, folder / f"run-{rank}", per_device_train_batch_size=size, max_steps=3)
    if layout is not None:
        assert trainer.accelerator.num_processes == 2
        trainer.accelerator.prepare_model = lambda prepared, **_: prepared
    logged = Logged()
    trainer.add_callback(logged)
    trainer.add_callback(PactCallback(trainer, hosts.config(folder / "cache")))
    trainer.train()
    evidence = Evidence.load(folder / f"run-{rank}" / "out") if rank == 0 else None
    assert evidence is None or evidence.parts[-1].ended == "finished"
    return logged.steps, whole_weights(model)


def trl_runs(folder: Path, rank: int) -> list[Any]:
    return [trl_run(layout, folder / layout, rank) for layout in ("root", "tail")]


def test_trl_trains_as_one_process(tmp_path: Path) -> None:
    """Prevents: a host whose own way of computing the loss leaves PACT without the head's weights."""
    logs, weights = trl_run(None, tmp_path / "one", 0)
    assert all("pact/kl" in entry for entry in logs[:3])
    for of_rank in in_two_processes(trl_runs, tmp_path):
        for found_logs, found_weights in of_rank:
            for expected, found in zip(logs, found_logs, strict=True):
                assert found == pytest.approx(expected, rel=1e-4)
            for name, weight in weights.items():
                torch.testing.assert_close(found_weights[name], weight, atol=1e-6, rtol=1e-5, msg=name)
