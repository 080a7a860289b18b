"""Keys for the launcher in a file of `pact sft` do what they do in one of `trl sft`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pact_plugins.cli import trl
from pact_plugins.preflight.run_file import read_run_file

RUN = {"pact": {"weight": 0.5}, "model_name_or_path": "m", "dataset_name": "d", "env": {"A": "1"}}
LAUNCHER = {"accelerate_config": "zero3", "num_processes": 2, "multi_gpu": True, "same_network": False}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `accelerate launch` was given, with the file that it was to run, in place of launching anything."""
    calls: list[Any] = []

    def launch_command(arguments: Any) -> None:
        *before, path = arguments.training_script_args
        calls.append((arguments, before, read_run_file(Path(path))))

    monkeypatch.setattr("accelerate.commands.launch.launch_command", launch_command)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return calls


def run_file(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.mark.trl
def test_the_launcher_is_given_its_keys(launched: list[Any], tmp_path: Path) -> None:
    """Prevents a file that `trl sft` trains with from being refused, and one process where several were asked for."""
    path = run_file(tmp_path, RUN | LAUNCHER)
    trl.sft(["--max_steps", "2", "--num_processes", "2", "--main_process_port=0", "--config", path])
    ((arguments, before, settings),) = launched
    assert (arguments.module, arguments.training_script) == (True, "pact_plugins")
    assert (before, settings) == (["sft", "--max_steps", "2", "--config"], RUN)
    assert (arguments.num_processes, arguments.multi_gpu, arguments.main_process_port) == (2, True, 0)
    assert Path(arguments.config_file).name == "zero3.yaml"


@pytest.mark.trl
def test_what_was_launched_trains(launched: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents processes that launch processes, and keys of the launcher that stop TRL's script within one."""
    run: list[Any] = []
    monkeypatch.setattr(trl, "_run_script", lambda path, settings, arguments, attach: run.append((settings, arguments)))
    path = run_file(tmp_path, RUN | LAUNCHER)
    monkeypatch.setenv("LOCAL_RANK", "0")
    trl.sft(["--config", path, "--num_machines", "1", "--max_steps", "1"])
    monkeypatch.delenv("LOCAL_RANK")
    trl.sft(["--config", run_file(tmp_path, RUN), "--max_steps", "1"])
    rest = {key: value for key, value in RUN.items() if key != "pact"}
    assert run == [(rest, ["--config", path, "--max_steps", "1"])] * 2
    assert not launched
