"""`make packages`: the wheel in a new environment for each extra, where the commands that it is for work."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pact_plugins import __version__
from tests.contract.commands import shortened
from tests.distribution import ROOT, build

pytestmark = pytest.mark.packages

MODEL = "pact_plugins/demo/models/aligned"
EVALUATE = f"pact eval --model {MODEL} --limit 4 --max-new-tokens 8"
TRL, AXOLOTL = "trl-demo-lora.yaml", "axolotl-demo-lora.yaml"
UNDER_PACT = {"pact verify out": "to step 1 of 1"}


def advice(extra: str) -> str:
    """The command that a message has to give."""
    return re.escape(f'pip install "pact-plugins[{extra}]"')


WORKS = {
    "none": {
        f"pact tokens --model {MODEL} --out tokens.json": "safety tokens",
        "pact inspect tokens.json": "own answers, harmful against harmless",
        f"pact check {TRL}": advice("trl"),
        f"pact check {AXOLOTL}": advice("axolotl"),
        EVALUATE: "",
        "pact report evaluation": f"no plots: .*{advice('report')}",
    },
    "trl": {
        f"pact check {TRL}": "0 errors, 0 warnings",
        f"pact sft --config {TRL}": f"no plots: .*{advice('report')}",
        **UNDER_PACT,
        f"{EVALUATE} --adapter out": "",
    },
    "axolotl": {
        "axolotl --help": "pact-train",
        f"pact check {AXOLOTL}": "0 errors, 0 warnings",
        f"axolotl pact-train {AXOLOTL} --launcher python": "",
        **UNDER_PACT,
    },
    "judge": {"python -c 'import openai; print(openai.OpenAI)'": "OpenAI"},
    "report": {
        EVALUATE: "",
        "pact report evaluation": "report.html",
        "grep <svg evaluation/pact_report/report.html": "",
    },
    "all": {f"pact sft --config {TRL}": "", **UNDER_PACT, "grep <svg out/pact_report/report.html": ""},
    "test": {"python -m pytest tests/method/test_loss.py": r"\d+ passed"},
    "dev": {
        "ruff check .": "All checks passed",
        "pyright --version": r"pyright \d",
        "pre-commit --version": r"pre-commit \d",
        f"pact sft --config {TRL}": "",
        **UNDER_PACT,
    },
    "docs": {"sphinx-build --fail-on-warning docs site": "build succeeded"},
}
"""For each extra, and for none: commands that have to succeed, with a pattern of what they print."""

NEEDS_CUDA = {"vllm"}
"""Extras that cannot be installed without: nothing here says that they work."""

REFUSED = {
    f"pact sft --config {TRL}": "trl",
    f"pact estimate {TRL}": "trl",
    f"pact audit {AXOLOTL}": "axolotl",
    "pact demo": "all",
    f"{EVALUATE} --adapter out --out adapted": "trl",
    f"{EVALUATE} --prompts owner/name --out hub": "trl",
    f"{EVALUATE} --engine vllm --out vllm": "vllm",
    f"{EVALUATE} --judge endpoint:m --judge-url http://localhost:9/v1 --out served": "judge",
}
"""Commands that need an extra: where there is none, they have to name it."""


class Environment:
    """A new environment with the wheel; its commands run at the top of the unpacked sdist, as after `git clone`.

    Args:
        folder: is empty.
        distribution: sdist and wheel.
        extra: of the wheel, or `none`.
    """

    def __init__(self, folder: Path, distribution: tuple[Path, Path], extra: str) -> None:
        sdist, wheel = distribution
        with tarfile.open(sdist) as archive:
            archive.extractall(folder)
        self.source = folder / sdist.name.removesuffix(".tar.gz")
        binaries = folder / "environment" / "bin"
        subprocess.run([sys.executable, "-m", "venv", str(binaries.parent)], check=True)
        self.variables = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "PACT_CACHE_DIR": str(folder / "cache"),
            "COLUMNS": "200",
        }
        constraints = ROOT / "requirements" / ("axolotl.txt" if extra == "axolotl" else "trl.txt")
        wanted = wheel if extra == "none" else f"{wheel}[{extra}]"
        self.prints(f"pip install --quiet --constraint {constraints} {wanted}")
        assert str(binaries.parent) in self.prints("python -I -c 'import pact_plugins; print(pact_plugins.__file__)'")
        for name in (TRL, AXOLOTL):
            shortened(self.source, name, max_steps=1)

    def run(self, command: str) -> tuple[int, str]:
        """Exit code and both outputs of a command that has ended."""
        own = {"cwd": self.source, "env": self.variables, "timeout": 3600, "stderr": subprocess.STDOUT}
        result = subprocess.run(shlex.split(command), **own, stdout=subprocess.PIPE, text=True, check=False)
        return result.returncode, result.stdout

    def prints(self, command: str) -> str:
        """What a command prints that has to succeed."""
        code, output = self.run(command)
        assert code == 0, f"{command}\n{output[-3000:]}"
        return output


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("distribution"))


@pytest.fixture
def environment(request: pytest.FixtureRequest, distribution: tuple[Path, Path]) -> Iterator[Environment]:
    """Of the extra that the test is given; gone afterwards, since each takes gigabytes."""
    with TemporaryDirectory() as folder:
        yield Environment(Path(folder), distribution, request.param)


@pytest.mark.parametrize(("environment", "extra"), [(name, name) for name in WORKS], indirect=["environment"])
def test_an_extra_brings_what_its_commands_need(environment: Environment, extra: str) -> None:
    """Prevents a requirement that only developers have installed, and a command that fails for want of an extra
    without saying which.
    """
    assert __version__ in environment.prints("pact --version")
    assert "Commands:" in environment.prints("pact --help")
    for command, pattern in WORKS[extra].items():
        assert re.search(pattern, environment.prints(command)), command
    for command, needed in REFUSED.items() if extra == "none" else ():
        code, output = environment.run(command)
        assert code == 1, command
        assert re.search(advice(needed), output), f"{command}\n{output[-3000:]}"
        assert "Traceback" not in output, command
