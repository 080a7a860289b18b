"""Runs that are killed while they train, through the commands that users type."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pact_plugins.run.evidence import Evidence
from pact_plugins.run.verification import verify
from tests.contract.commands import ROOT, environment, run, shortened

pytestmark = pytest.mark.faults

PACT = {"safety_tokens": [40, 41, 42, 43], "anchors": 0, "eval": False}
SETTINGS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "pact": PACT}


def killed(folder: Path, command: list[str], checkpoint: Path) -> None:
    """Starts a command, and kills it with all its children once `checkpoint` is there."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(folder), stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 300
            while not (checkpoint / "trainer_state.json").exists():
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "train"),
    [
        pytest.param("trl-demo-lora.yaml", ["pact", "sft", "--config", "FILE"], marks=pytest.mark.trl),
        pytest.param(
            "axolotl-demo-packed.yaml",
            ["axolotl", "pact-train", "FILE", "--launcher", "python"],
            marks=pytest.mark.axolotl,
        ),
    ],
)
def test_a_killed_run_is_resumed_under_pact(name: str, train: list[str], tmp_path: Path) -> None:
    """Prevents a killed run from passing for a whole one, and a checkpoint that can only be resumed unprotected."""
    path, checkpoint = shortened(tmp_path, name, **SETTINGS), tmp_path / "out" / "checkpoint-2"
    command = [str(path) if word == "FILE" else word for word in train]
    killed(tmp_path, command, checkpoint)
    assert "it did not end: the last record is of step" in verify(tmp_path / "out").sentence
    (begun,) = Evidence.read(tmp_path / "out").parts
    assert begun.last_step >= 2
    shortened(tmp_path, name, **SETTINGS, resume_from_checkpoint=str(checkpoint))
    resumed = run(tmp_path, *command)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    evidence = Evidence.read(tmp_path / "out")
    assert [(part.first_step, part.ended) for part in evidence.parts] == [(0, "restarted"), (2, "finished")]
    assert evidence.parts[1].loss_at_start["pact/kl"] > 0
    verified = run(tmp_path, "pact", "verify", str(tmp_path / "out"))
    assert verified.returncode == 0, verified.stdout
    assert "to step 6 of 6" in verified.stdout
