"""Running the commands that users type, on the shipped models and the shipped example configs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "example_configs"
needs_axolotl = pytest.mark.skipif(not find_spec("axolotl"), reason="runs in the environment that has Axolotl")


def environment(folder: Path) -> dict[str, str]:
    """What commands are run with: this environment's, and caches of their own."""
    bin_folder = Path(sys.executable).parent
    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PACT_CACHE_DIR": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        # None of its own for the rows, unless a file says so: to start some takes longer than these few rows.
        "AXOLOTL_DATASET_NUM_PROC": "0",
    }


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command that has ended, with its output."""
    own = {"cwd": ROOT, "env": environment(folder), "timeout": 900}
    return subprocess.run(command, **own, capture_output=True, text=True, check=False)


def shortened(folder: Path, name: str, **changes: object) -> Path:
    """An example config with fewer steps and its output in a temporary folder."""
    settings = yaml.safe_load((EXAMPLES / name).read_text())
    settings |= {"max_steps": 3, "logging_steps": 1, "output_dir": str(folder / "out"), **changes}
    if "dataset_prepared_path" in settings:
        settings["dataset_prepared_path"] = str(folder / "prepared")
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return path
