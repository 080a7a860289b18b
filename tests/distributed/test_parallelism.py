"""What cuts documents or layers between processes is refused, however it is switched on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import yaml
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from pact_plugins import PactCallback
from pact_plugins.errors import PactError
from pact_plugins.preflight.check import check
from tests import tiny
from tests.contract import hosts

TRL: dict[str, Any] = {"model_name_or_path": "some/model", "dataset_name": "some/data", "pact": True}
AXOLOTL: dict[str, Any] = {
    "base_model": "some/model",
    "datasets": [{"path": "some/data"}],
    "plugins": ["pact_plugins.axolotl.PactPlugin"],
    "pact": True,
}
REFUSED = [
    (TRL, {"fsdp": "full_shard", "fsdp_config": {"version": 1}}, "FSDP1"),
    (TRL, {"fsdp": "full_shard offload"}, "offloads"),
    (TRL, {"fsdp": True, "fsdp_config": {"cpu_offload": True}}, "offloads"),
    (TRL, {"fsdp": True, "load_in_4bit": True}, "quantised"),
    (TRL, {"parallelism_config": {"cp_size": 2}}, "context parallelism"),
    (TRL, {"parallelism_config": {"sp_size": 2}}, "parallelism"),
    (TRL, {"parallelism_config": {"tp_size": 2}}, "parallelism"),
    (TRL, {"deepspeed": {"sequence_parallel_size": 2}}, "parallelism"),
    (TRL, {"deepspeed": {"tensor_parallel": {"autotp_size": 2}}}, "parallelism"),
    (TRL, {"deepspeed": {"zero_optimization": {"stage": 3}}, "load_in_4bit": True}, "quantised"),
    (AXOLOTL, {"fsdp_config": {"reshard_after_forward": True}}, "FSDP1"),
    (AXOLOTL, {"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, "offloads"),
    (AXOLOTL, {"context_parallel_size": 2}, "parallelism"),
    (AXOLOTL, {"sequence_parallel_degree": 2}, "parallelism"),
    (AXOLOTL, {"tensor_parallel_size": 2}, "parallelism"),
    (AXOLOTL, {"expert_parallel_size": 2}, "expert parallelism"),
]
SERVED = [
    (TRL, {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}),
    (TRL, {"deepspeed": {"zero_optimization": {"stage": 3}}}),
    (TRL, {"deepspeed": {"zero_optimization": {"stage": 2}}, "load_in_4bit": True}),
    (AXOLOTL, {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}, "dp_shard_size": 8}),
    (AXOLOTL, {"fsdp_config": {"fsdp_version": 2}}),
]


def _errors(folder: Path, settings: dict[str, Any]) -> list[str]:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    # What this environment lacks is another matter.
    return [f.error.got for f in check(path).errors if f.key in settings]


@pytest.mark.parametrize(("base", "changes", "words"), REFUSED, ids=str)
def test_files_that_cannot_be_served_are_refused(
    base: dict[str, Any], changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """Prevents: a file that `pact check` calls sound, and whose run stops on many expensive GPUs."""
    assert not _errors(tmp_path, base)
    (got,) = _errors(tmp_path, {**base, **changes})
    assert words in got


@pytest.mark.parametrize(("base", "changes"), SERVED, ids=str)
def test_files_that_can_be_served_are_sound(base: dict[str, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    """Prevents: FSDP2 and ZeRO-3 being refused."""
    assert not _errors(tmp_path, {**base, **changes})


@pytest.fixture
def process_group() -> Iterator[None]:
    """Of this process alone, for layers that are cut into one piece."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_cut_layers_are_refused(tmp_path: Path) -> None:
    """Prevents: rows of one process's part of the head being taken for those of the safety tokens."""
    model = tiny.llama()
    trainer = hosts.trl_trainer(model, tmp_path)
    PactCallback(trainer, hosts.config(tmp_path)).binding.remove()
    parallelize_module(model, init_device_mesh("cpu", (1,)), {"lm_head": ColwiseParallel()})
    with pytest.raises(PactError, match="tensor parallelism"):
        PactCallback(trainer, hosts.config(tmp_path))


def test_a_tensor_parallel_plan_is_refused(tmp_path: Path) -> None:
    """Prevents: `from_pretrained(..., tp_plan="auto")`, which cuts plain tensors and tells by their number alone."""
    model = tiny.llama()
    model._tp_size = 2
    trainer = hosts.trl_trainer(tiny.llama(), tmp_path)
    trainer.model = model
    with pytest.raises(PactError, match="tensor parallelism"):
        PactCallback(trainer, hosts.config(tmp_path))
