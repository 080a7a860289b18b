"""What users install: the wheel has everything that the package reads, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from pact_plugins import __version__
from pact_plugins.requirements import TESTED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """Prevents prompts, templates or models that are there in the repository alone; and tests in the wheel."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "pact_plugins"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert names == set(listed.stdout.splitlines())
    assert {"pact_plugins/py.typed", "pact_plugins/prompts/de/harmful.txt"} < names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Prevents a second version, and commands that are not installed."""
    assert wheel.name.split("-")[1] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
    assert (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("## ")[1].startswith(__version__)
    archive = zipfile.ZipFile(wheel)
    (points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    text = archive.read(points).decode()
    assert "pact = pact_plugins.cli:main" in text
    assert "pact-train = pact_plugins.axolotl:pact_train" in text


def test_bounds_are_not_below_what_is_tested() -> None:
    """Prevents a promise to work with releases that nobody tried, of the packages that PACT reaches into."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    needed = {r.name: r for r in map(Requirement, lines)}
    for name in ("transformers", "trl", "peft", "axolotl"):
        least, greatest = TESTED[name]
        (bound,) = [Version(s.version) for s in needed[name].specifier if s.operator == ">="]
        assert bound.release[:2] == Version(least).release[:2], name
        assert all(needed[name].specifier.contains(version) for version in (least, greatest)), name
