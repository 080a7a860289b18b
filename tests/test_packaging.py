"""What users install: the wheel has everything that the package reads, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from pact_plugins import __version__
from pact_plugins.preflight.requirements import TESTED
from tests.distribution import ROOT, build
from tests.test_extras import NEEDS_CUDA, WORKS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


ALL = {"none": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def pins(name: str) -> dict[str, Version]:
    """What a file of constraints says: packages and releases."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {package.lower(): Version(release) for package, release in pairs}


def bounds(extra: str) -> dict[str, Version]:
    """The lowest release of each package that an extra allows, of the extras that it names too."""
    found: dict[str, Version] = {}
    for needed in map(Requirement, ALL[extra]):
        if needed.name == PROJECT["name"]:
            for other in needed.extras:
                found |= bounds(other)
        else:
            (found[needed.name],) = [Version(s.version) for s in needed.specifier if s.operator == ">="]
    return found


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("distribution"))


@pytest.fixture(scope="module")
def wheel(distribution: tuple[Path, Path]) -> Path:
    return distribution[1]


def listed(*options: str) -> set[str]:
    """Files that git knows."""
    found = subprocess.run(["git", "ls-files", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(found.stdout.splitlines())


def test_the_sdist_has_the_whole_repository(distribution: tuple[Path, Path]) -> None:
    """Prevents an sdist that cannot be tested, or whose pages cannot be made; and build outputs in it."""
    with tarfile.open(distribution[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names == listed("--cached", "--others", "--exclude-standard") - {".ci/run"} | {"PKG-INFO"}


def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """Prevents prompts, templates or models that are there in the repository alone; and tests in the wheel."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == listed("pact_plugins")
    assert {"pact_plugins/py.typed", "pact_plugins/method/prompts/de/harmful.txt"} < names


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


def test_every_bound_is_tested() -> None:
    """Prevents a promise to work with releases that nobody tried, and an extra that nobody installs."""
    lowest = pins("lowest")
    assert lowest == bounds("none") | bounds("trl") | bounds("test")
    assert bounds("axolotl") == {"axolotl": pins("axolotl")["axolotl"]}
    least = {name: Version(ends[0]) for name, ends in TESTED.items()}
    assert least == {name: lowest.get(name, pins("axolotl").get(name)) for name in TESTED}
    greatest = {name: Version(ends[1]) for name, ends in TESTED.items()}
    assert greatest == {name: pins("trl").get(name, pins("axolotl").get(name)) for name in TESTED}
    assert {*ALL} == {*WORKS, *NEEDS_CUDA}
