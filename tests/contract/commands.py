"""Running the commands that users type, on the shipped models and the shipped example configs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.brief import without_page
from tests.forked import Forked

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "example_configs"


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


Command = Callable[..., subprocess.CompletedProcess[str]]

LIMIT = 900
"""Seconds that a command may take; far more than it needs."""

ENTRY_POINTS = {"pact": "pact_plugins.cli", "axolotl": "axolotl.cli.main"}
"""The modules whose `main` the installed scripts call."""


def started(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A command that has ended, with its output, from its installed script on."""
    own = {"cwd": ROOT, "env": environment(folder), "timeout": LIMIT}
    return subprocess.run(command, **own, capture_output=True, text=True, check=False)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """The same, as far as it can be told, without the ten seconds that Axolotl takes to be imported, nor plots.

    Axolotl's plugins cannot bring training arguments of their own.
    """
    return forked(folder, _script, *command)


def forked(folder: Path, function: Callable[..., Any], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """A function in a process of its own that has imported everything already, when it has ended."""
    process = Forked(_at_the_top, function, *arguments, environment=environment(folder), daemon=False)
    try:
        out, errors = process.communicate(LIMIT)
    finally:
        process.kill()
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, errors)


def _at_the_top(function: Callable[..., Any], *arguments: Any) -> None:
    os.chdir(ROOT)
    function(*arguments)


def _script(program: str, *arguments: str) -> None:
    sys.argv = [program, *arguments]
    without_page(pytest.MonkeyPatch())  # until the process ends
    import_module(ENTRY_POINTS[program]).main()


ROWS = 320
"""Rows of an example that are enough for a few steps, one in ten of them harmful."""


def shortened(folder: Path, name: str, rows: int | None = ROWS, **changes: object) -> Path:
    """An example config with fewer steps, the first of its rows, and its output in a temporary folder."""
    settings = yaml.safe_load((EXAMPLES / name).read_text())
    (data,) = settings["datasets"]
    key = "data_files" if "data_files" in data else "path"
    whole = ROOT / data[key]
    data[key] = str(folder / whole.name)
    Path(data[key]).write_text("".join(whole.read_text().splitlines(keepends=True)[:rows]))
    settings |= {"max_steps": 3, "logging_steps": 1, "output_dir": str(folder / "out"), **changes}
    if "dataset_prepared_path" in settings:
        settings["dataset_prepared_path"] = str(folder / "prepared")
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in settings.items() if v is not None}))
    return path
