"""The command line, as far as it needs no trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pact_plugins import artefacts
from pact_plugins.cli import main
from pact_plugins.config import PactConfig
from pact_plugins.preparation import prepare
from tests import tiny
from tests.rows import documents, few, flip_bit


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """A folder with two caches."""
    for seed in (0, 1):
        config = PactConfig(safety_tokens=[40, 41], anchors=0, cache_dir=tmp_path)
        prepare(tiny.llama(seed), tiny.tokenizer(), documents(few()), config, show_progress=False)
    return tmp_path


def pact(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_info_lists_caches(caches: Path) -> None:
    """Prevents: a cache that takes space and shows nowhere."""
    rows = json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)
    assert len({row["identity"]["model"] for row in rows}) == len(rows) == 2
    assert all(row["bytes"] > row["answer_tokens"] * 2 * 2 for row in rows)
    table = pact("cache", "info", "--dir", str(caches)).stdout
    assert table.startswith("2 reference caches")


def test_verify_finds_damage(caches: Path) -> None:
    """Prevents: a flipped bit that is found only in the middle of a run; or an intact cache called damaged."""
    assert pact("cache", "verify", "--dir", str(caches)).output.count("intact") == 2
    flip_bit(next(caches.glob("*/full.safetensors")), -3)
    result = pact("cache", "verify", "--dir", str(caches))
    assert result.exit_code != 0
    assert result.output.count("intact: ") == 1
    assert "do not match their checksum" in result.output


def test_a_cache_of_another_version_hides_no_other(caches: Path) -> None:
    """Prevents: an upgrade after which the caches cannot be listed."""
    (caches / "old").mkdir()
    (caches / "old" / "manifest.json").write_text('{"identity": {"format": 2}}')
    result = pact("cache", "info", "--dir", str(caches))
    assert result.exit_code == 0
    assert result.stdout.startswith("2 reference caches")
    assert "cannot be used" in result.stderr
    assert str(caches / "old") in result.stderr
    assert len(json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)) == 2


def test_unfinished_builds_show_and_go(caches: Path) -> None:
    """Prevents: space that is taken by builds which no command shows or removes."""
    whole = next(caches.glob("*/manifest.json")).parent
    begun = whole.rename(whole.with_name(f"{whole.name}.partial"))
    rows = json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)
    assert [row["folder"] for row in rows if "identity" not in row] == [str(begun)]
    assert sum(file.stat().st_size for file in begun.iterdir()) in {row["bytes"] for row in rows}
    assert "not finished" in pact("cache", "info", "--dir", str(caches)).stdout
    assert pact("cache", "verify", "--dir", str(caches)).output.count("intact") == 1
    with artefacts.locked(whole, "building"):
        result = pact("cache", "clear", "--dir", str(caches), "--yes")
        assert "1 removed" in result.stdout
        assert f"in use: {begun}" in result.stderr
        assert begun.exists()
    assert "1 removed" in pact("cache", "clear", "--dir", str(caches), "--yes").stdout
    assert not list(caches.iterdir())


def test_clear_asks_first(caches: Path) -> None:
    """Prevents: references of unfinished runs that are gone by a slip."""
    assert pact("cache", "clear", "--dir", str(caches)).exit_code != 0
    assert len(list(caches.glob("*/manifest.json"))) == 2
    assert "2 removed" in pact("cache", "clear", "--dir", str(caches), "--yes").output
    assert not list(caches.glob("*/manifest.json"))


@pytest.mark.parametrize(
    "command", [[], ["cache"], ["tokens"], ["inspect"], ["eval"], ["report"], ["demo"], ["cache", "info"]]
)
def test_every_command_has_help(command: list[str]) -> None:
    """Prevents: a command that can only be understood from its source."""
    result = pact(*command, "--help")
    assert result.exit_code == 0
    assert "Example: pact" in result.output or "Commands:" in result.output
