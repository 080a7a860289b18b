"""Which releases of other packages this one needs, and which it was tried with."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

TESTED = {
    "torch": ("2.6.0", "2.13.0"),
    "transformers": ("5.16.0", "5.23.0"),
    "trl": ("1.9.0", "1.16.0"),
    "peft": ("0.20.0", "0.21.2"),
    "axolotl": ("0.19.0", "0.19.0"),
}
"""The least and the greatest release that the tests run with."""


def unmet(extra: str) -> Iterator[tuple[str, str, str | None]]:
    """What this package needs with `extra` and does not find: name, requirement, installed version or None."""
    for text in requires("pact-plugins") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
            continue
        found = installed(needed.name)
        if found is None or not needed.specifier.contains(found, prereleases=True):
            yield needed.name, f"{needed.name}{needed.specifier}", found


def untested() -> Iterator[tuple[str, str, str, str]]:
    """What is installed in a release that was not tried: name, least and greatest tested, installed version."""
    for name, (least, greatest) in TESTED.items():
        found = installed(name)
        if found is not None and not Version(least) <= Version(Version(found).public) <= Version(greatest):
            yield name, least, greatest, found


def installed(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
