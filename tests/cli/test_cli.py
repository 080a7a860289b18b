"""The command line, as far as it needs no trainer."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pact_plugins.cli import main
from pact_plugins.config import PactConfig
from pact_plugins.method.safety_tokens import SafetyTokens, Stability
from pact_plugins.run.preparation import prepare
from pact_plugins.run.trainer import Start
from pact_plugins.storage import files
from tests import tiny
from tests.rows import documents, few, flip_bit


@pytest.fixture
def caches(tmp_path: Path) -> Path:
    """A folder with two caches, of one store each."""
    for seed in (0, 1):
        config = PactConfig(safety_tokens=[40, 41], anchors=0, conflict="keep", cache_dir=tmp_path)
        prepare(Start(tiny.llama(seed), tiny.tokenizer(), documents(few()), config, show_progress=False))
    return tmp_path


def pact(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_info_lists_caches(caches: Path) -> None:
    """Prevents: a cache that takes space and shows nowhere."""
    rows = json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)
    assert len({row["identity"]["model"] for row in rows}) == len(rows) == 2
    assert all(row["bytes"] > row["values"]["full"] * 2 * 2 for row in rows)
    assert all((row["documents"], row["segments"]) == (4, 1) for row in rows)
    table = pact("cache", "info", "--dir", str(caches)).stdout
    assert table.startswith("2 reference caches")


def test_info_tells_caches_apart(tmp_path: Path) -> None:
    """Prevents: two caches of one model that the table shows alike."""
    for tokens in ([40, 41], [40, 42]):
        config = PactConfig(safety_tokens=tokens, anchors=0, cache_dir=tmp_path)
        prepare(Start(tiny.llama(), tiny.tokenizer(), documents(few()), config, show_progress=False))
    caches = json.loads(pact("cache", "info", "--dir", str(tmp_path), "--json").stdout)
    result = CliRunner().invoke(main, ["cache", "info", "--dir", str(tmp_path)], env={"COLUMNS": "250"})
    header, *lines = [line for line in result.stdout.splitlines() if line[0] in "┃│"]
    cells = [cell.strip() for cell in header.split("┃")[1:-1]]
    assert cells[:2] == ["folder", "of"]
    assert cells[2:] == ["model", "harm", "safety_tokens", "sequences", "values", "MiB", "last used"]
    shown = {tuple(cell.strip() for cell in line.split("│")[2:6]) for line in lines}
    entries = ("model", "harm", "safety_tokens")
    assert shown == {
        (", ".join(cache["values"]), *((cache["identity"][entry] or "")[:8] for entry in entries)) for cache in caches
    }
    assert len(shown) == 3, "the harm of both is the same"


def test_verify_finds_damage(caches: Path) -> None:
    """Prevents: a flipped bit that is found only in the middle of a run; or an intact cache called damaged."""
    assert pact("cache", "verify", "--dir", str(caches)).output.count("intact: ") == 2
    flip_bit(next(caches.glob("*/*/full.safetensors")), -3)
    result = pact("cache", "verify", "--dir", str(caches))
    assert result.exit_code == 1
    assert result.stdout.count("intact: ") == 1
    assert "do not match their checksum" in result.stdout
    found = pact("cache", "verify", "--dir", str(caches), "--json")
    assert found.exit_code == 1
    assert {key: len(paths) for key, paths in json.loads(found.stdout).items()} == {"intact": 1, "damaged": 1}


@pytest.mark.parametrize("name", ["0" * 32, "f" * 32 + ".partial"])
def test_a_cache_of_another_version_hides_no_other(caches: Path, name: str) -> None:
    """Prevents: an upgrade after which the caches cannot be listed, and space that no command gives back."""
    old = caches / name
    old.mkdir()
    (old / "manifest.json").write_text('{"identity": {"format": 4}}')
    result = pact("cache", "info", "--dir", str(caches))
    assert result.exit_code == 0
    assert result.stdout.startswith("2 reference caches")
    assert "cannot be used" in result.stderr
    assert f"one of a format before it, {old.name}" in result.stderr
    assert len(json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)) == 2
    assert "3 removed" in pact("cache", "clear", "--dir", str(caches), "--yes").stdout
    assert not list(caches.iterdir())


def test_a_renamed_cache_is_named(caches: Path) -> None:
    """Prevents: a cache that no run finds, and that looks sound in the list."""
    next(caches.glob("*/*/manifest.json")).parent.parent.rename(caches / ("0" * 32))
    result = pact("cache", "info", "--dir", str(caches))
    assert result.stdout.startswith("1 reference cache ")
    assert "Rename it to" in result.stderr


def test_unfinished_builds_show_and_go(caches: Path) -> None:
    """Prevents: space that is taken by builds which no command shows or removes."""
    whole = next(caches.glob("*/*/manifest.json")).parent
    begun = whole.rename(whole.with_name(f"{whole.name}.partial"))
    rows = json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)
    assert [row["folder"] for row in rows if "identity" not in row] == [str(begun)]
    assert sum(file.stat().st_size for file in begun.iterdir()) in {row["bytes"] for row in rows}
    shown = CliRunner().invoke(main, ["cache", "info", "--dir", str(caches)], env={"COLUMNS": "200"}).stdout
    assert "not finished" in shown
    assert pact("cache", "verify", "--dir", str(caches)).output.count("intact: ") == 1
    with files.locked(begun.parent, "building"):
        result = pact("cache", "clear", "--dir", str(caches), "--yes")
        assert "1 removed" in result.stdout
        assert f"in use: {begun.parent}" in result.stderr
        assert begun.exists()
    assert "1 removed" in pact("cache", "clear", "--dir", str(caches), "--yes").stdout
    assert not list(caches.iterdir())


def test_clear_asks_first(caches: Path) -> None:
    """Prevents: references of unfinished runs that are gone by a slip."""
    assert pact("cache", "clear", "--dir", str(caches)).exit_code != 0
    assert len(list(caches.glob("*/*/manifest.json"))) == 2
    arguments = ["cache", "clear", "--dir", str(caches), "--json"]
    result = CliRunner().invoke(main, arguments, input="y\n")
    assert len(json.loads(result.stdout)["removed"]) == 2
    assert "Remove 2 caches" in result.stderr
    assert not list(caches.glob("*/*/manifest.json"))


def test_clear_removes_what_is_old_of_a_model_or_too_much(caches: Path) -> None:
    """Prevents: a disk that is full of models long gone, or a reference in use that goes with them."""
    rows = json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)
    (old, old_model), (_, new_model) = ((Path(row["folder"]), row["identity"]["model"]) for row in rows)
    (caches / "outputs" / "run").mkdir(parents=True)  # which is nobody's cache

    def removed(*options: str) -> list[str]:
        return json.loads(pact("cache", "clear", "--dir", str(caches), "--yes", "--json", *options).stdout)["removed"]

    assert removed("--older-than", "2") == []
    os.utime(old, (time.time() - 3 * 86_400,) * 2)
    assert removed("--older-than", "4") == removed("--older-than", "2", "--model", new_model[:6]) == []
    assert removed("--down-to", "1") == []
    size = rows[1]["bytes"] + 100
    assert removed("--down-to", str(size / 1e9), "--model", old_model) == [str(old)]
    assert len(removed()) == 1
    assert [path.name for path in caches.iterdir()] == ["outputs"]


def test_a_run_keeps_its_cache_young(caches: Path) -> None:
    """Prevents: the cache that every run uses going first, since it was made first."""
    row = json.loads(pact("cache", "info", "--dir", str(caches), "--json").stdout)[0]
    os.utime(row["folder"], (0, 0))
    for seed in (0, 1):
        config = PactConfig(safety_tokens=[40, 41], anchors=0, conflict="keep", cache_dir=caches)
        prepare(Start(tiny.llama(seed), tiny.tokenizer(), documents(few()), config, show_progress=False))
    assert Path(row["folder"]).stat().st_mtime > time.time() - 3600


@pytest.fixture
def token_files(tmp_path: Path) -> tuple[str, str]:
    """Two files that share one token."""
    paths = tmp_path / "a.json", tmp_path / "b.json"
    for path, other, texts in zip(paths, (41, 42), ("[<b>]", ""), strict=True):
        stability = Stability((1.0, 0.25), (0.5, 0.0), (0.7, 0.3), (texts, ""), 0.5, 0.1)
        tokens = SafetyTokens.build([40, other], [0.6, 0.2], tiny.tokenizer(), {"method": "test"})
        replace(tokens, stability=stability).save(path)
    return str(paths[0]), str(paths[1])


def test_tokens_are_compared(token_files: tuple[str, str], tmp_path: Path) -> None:
    """Prevents: two sets that cannot be told apart, or that belong to unlike tokenizers and look alike."""
    found = json.loads(pact("tokens", "diff", *token_files, "--json").stdout)
    assert found == {"first": {"40": 0.6, "41": 0.2}, "second": {"40": 0.6, "42": 0.2}}
    shown = pact("tokens", "diff", *token_files).stdout
    assert "1 tokens held by both" in shown
    assert shown.count("not held") == 2
    bigger = copy.deepcopy(tiny.tokenizer())
    bigger.add_tokens(["<|new|>"])
    SafetyTokens.build([40], [1.0], bigger, {}).save(tmp_path / "c.json")
    result = pact("tokens", "diff", token_files[0], str(tmp_path / "c.json"))
    assert result.exit_code == 1
    assert "same tokenizer" in result.output


def test_inspect_shows_what_is_known(token_files: tuple[str, str], tmp_path: Path) -> None:
    """Prevents: doubts that stay in the file, and answers of a model that become part of a page."""
    page = tmp_path / "page.html"
    shown = pact("inspect", token_files[0], "--html", str(page))
    assert shown.exit_code == 0, shown.output
    assert "hardly refuses: 10%" in shown.stdout.replace("\n", " ")
    assert "0.500 to 0.700" in shown.stdout
    assert "&lt;b&gt;" in page.read_text(encoding="utf-8")
    assert "<b>" not in page.read_text(encoding="utf-8")
    (first, _) = json.loads(pact("inspect", token_files[0], "--json").stdout)
    assert (first["held"], first["low"], first["high"], first["examples"]) == (1.0, 0.5, 0.7, "[<b>]")
