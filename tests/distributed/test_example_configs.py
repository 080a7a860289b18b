"""The examples for several GPUs, as far as a machine without one can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from torch.distributed.fsdp import CPUOffloadPolicy

from pact_plugins.checking import check
from tests.contract.commands import EXAMPLES, ROOT

FOLDER = EXAMPLES / "several-gpus"
RUNS = sorted(p for p in FOLDER.glob("*.yaml") if not p.name.startswith("accelerate"))
AXOLOTL = [p for p in RUNS if p.name.startswith("axolotl")]
LAUNCHERS = sorted(FOLDER.glob("accelerate-*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_a_run_file_is_sound(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example that PACT itself refuses, or a command in its head that names another file."""
    monkeypatch.chdir(ROOT)
    assert check(path).sound
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    named = [ROOT / word for line in head for word in line.split() if word.startswith("example_configs/")]
    assert path in named
    assert all(file.exists() for file in named)


@pytest.mark.trl
@pytest.mark.parametrize("path", [p for p in RUNS if p not in AXOLOTL], ids=lambda p: p.name)
def test_trl_knows_every_key(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example that TRL's parser refuses."""
    from trl.scripts import sft

    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    settings = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "pact"}
    rest = tmp_path / path.name
    rest.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path)}))
    _, training, *_ = sft.make_parser().parse_args_and_config(["--config", str(rest)])
    assert training.gradient_checkpointing_kwargs == settings["gradient_checkpointing_kwargs"]


@pytest.mark.axolotl
@pytest.mark.parametrize("path", AXOLOTL, ids=lambda p: p.name)
def test_axolotl_knows_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an example that Axolotl's schema refuses, or turns into something else."""
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    monkeypatch.chdir(ROOT)
    settings = DictDefault(yaml.safe_load(path.read_text()))
    prepare_plugins(settings)
    gpu = {"bf16": True, "tf32": True, "fp8": False, "n_gpu": 8, "n_node": 1, "compute_capability": "sm_90"}
    found = validate_config(settings, capabilities=gpu, env_capabilities={"torch_version": "2.13.0"})
    assert found.pact == settings.pact
    assert found.fsdp_version == settings.fsdp_version
    assert found.deepspeed == settings.deepspeed


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda p: p.name)
def test_accelerate_knows_every_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a launcher's file that accelerate refuses, or one that starts another engine than it says."""
    config: Any = load_config_from_file(str(path))
    assert config.num_processes == 8
    engine = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[path.stem.split("-")[1]]
    assert str(config.distributed_type).endswith(engine)
    if engine == "FSDP":
        for key, value in config.fsdp_config.items():
            monkeypatch.setenv(key.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS"), str(value))
        plugin = FullyShardedDataParallelPlugin()
        assert plugin.fsdp_version == 2
        assert plugin.reshard_after_forward is True
        assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    if engine == "DEEPSPEED":
        assert (ROOT / config.deepspeed_config["deepspeed_config_file"]).exists()


def test_transformers_reads_the_deepspeed_file() -> None:
    """Prevents: a file of another stage, which would not share the weights."""
    pytest.importorskip("deepspeed", reason="transformers reads the file only where DeepSpeed is installed")
    from transformers.integrations import HfDeepSpeedConfig

    config = HfDeepSpeedConfig(json.loads((FOLDER / "zero3.json").read_text()))
    assert config.is_zero3()
    assert not config.is_offload()
