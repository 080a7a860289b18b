"""DeepSpeed ZeRO-2 and ZeRO-3 over two processes, against one process."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from pact_plugins import PactCallback
from tests import tiny
from tests.contract import hosts
from tests.distributed.sharded import (
    Case,
    Logged,
    check_like_one_process,
    in_two_processes,
    trained_in_two_processes,
    whole_weights,
)

deepspeed: Any = pytest.importorskip("deepspeed", reason="needs DeepSpeed, in an environment of one's own")
# Its collectives over shared memory are compiled when they are first used, which takes minutes; those of gloo will do.
import_module("deepspeed.comm.torch").build_shm_op = lambda: None
pytestmark = pytest.mark.distributed

ALIKE = [
    Case("2"),
    Case("3"),
    Case("3", tied=True),
    Case("3", silent=True),
    Case("3", adapter="lora"),
    Case("3", adapter="head", silent=True),
    Case("3", checkpointing="plain"),
    Case("3", adapter="lora", checkpointing="reentrant"),
]


def sharded(model: Any, case: Case) -> Any:
    """The raw engine with plain SGD."""
    assert case.layout is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimiser, config=engine_settings(int(case.layout)))
    return engine, engine.backward, engine.step


def engine_settings(stage: int) -> dict[str, Any]:
    """A threshold of 0 has small weights taken apart too."""
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # by default 1
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 20_000,
        },
        "zero_allow_untested_optimizer": True,
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, list[Any]]:
    return trained_in_two_processes(ALIKE, sharded, tmp_path_factory.mktemp("zero"))


@pytest.mark.parametrize("case", ALIKE, ids=str)
def test_training_equals_one_process(case: Case, results: dict[Case, list[Any]], tmp_path: Path) -> None:
    """Prevents: a reference, a loss or gradients from pieces of the weights, under a loss that looks plausible."""
    check_like_one_process(case, results[case], tmp_path)


def trl_run(stage: int | None, folder: Path, rank: int) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """TRL's trainer with DeepSpeed as a user switches it on."""
    settings = {**engine_settings(stage), "train_micro_batch_size_per_gpu": "auto"} if stage else None
    trainer = hosts.trl_trainer(
        tiny.llama(),
        folder / f"run-{rank}",
        per_device_train_batch_size=2 if stage else 4,
        max_steps=3,
        deepspeed=settings,
    )
    logged = Logged()
    trainer.add_callback(logged)
    trainer.add_callback(PactCallback(trainer, hosts.config(folder / "cache")))
    trainer.train()
    return logged.steps, whole_weights(trainer.accelerator.unwrap_model(trainer.model))


def trl_runs(folder: Path, rank: int) -> list[Any]:
    return [trl_run(stage, folder / str(stage), rank) for stage in (2, 3)]


def test_trl_trains_as_one_process(tmp_path: Path) -> None:
    """Prevents: a host whose own way of computing the loss, or of starting DeepSpeed, PACT does not go along with."""
    logs, weights = trl_run(None, tmp_path / "one", 0)
    for of_rank in in_two_processes(trl_runs, tmp_path):
        for found_logs, found_weights in of_rank:
            for expected, found in zip(logs, found_logs, strict=True):
                assert found == pytest.approx(expected, rel=1e-4)
            for name, weight in weights.items():
                torch.testing.assert_close(found_weights[name], weight, atol=1e-6, rtol=1e-5, msg=name)
