"""`pact estimate`, as far as it needs no host; `tests/contract` runs it on both."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from pact_plugins.cli import main
from pact_plugins.errors import PactError
from pact_plugins.preflight.dry_run import config_of, in_place_of_training
from pact_plugins.preflight.run_file import PLUGIN, host_of

TRL: dict[str, Any] = {"model_name_or_path": "m", "pact": True}


def estimate(path: Path) -> Result:
    return CliRunner().invoke(main, ["estimate", str(path)])


def written(folder: Path, settings: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_name_or_path": "m"}, "the key `pact`"),
        ({**TRL, "pact": False}, "to see what it would do"),
        ({**TRL, "pact": {"wieght": 2}}, "Did you mean `weight`"),
        ({**TRL, "resume_from_checkpoint": "out/checkpoint-3"}, "taken for the reference"),
        ({"pact": True, "model": "m"}, "the keys model, pact in"),
        (["pact"], "a file that holds list"),
        (None, "a file that holds NoneType"),
    ],
)
def test_refuses_files_that_it_cannot_estimate(settings: Any, words: str, tmp_path: Path) -> None:
    """Prevents: a traceback of a host, or an estimate of another run than the file's."""
    result = estimate(written(tmp_path, settings))
    assert result.exit_code == 1
    assert words in result.output


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    """Prevents: a traceback in place of the name of the file."""
    result = estimate(tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert "none.yaml" in result.output


@pytest.mark.skipif(find_spec("axolotl") is not None, reason="Axolotl is installed")
def test_says_how_to_install_axolotl(tmp_path: Path) -> None:
    """Prevents: an import error for a file that is right, in the wrong environment."""
    result = estimate(written(tmp_path, {"base_model": "m", "datasets": [], "plugins": [PLUGIN], "pact": True}))
    assert 'pip install "pact-plugins[axolotl]"' in result.output


def test_knows_the_host_by_the_keys() -> None:
    """Prevents: an Axolotl file without the plugin's line being read as no file at all."""
    path = Path("run.yaml")
    assert host_of({"plugins": [PLUGIN]}, path) == "axolotl"
    assert host_of({"base_model": "m", "datasets": []}, path) == "axolotl"
    assert host_of(TRL, path) == "trl"
    assert config_of({"pact": {"weight": 2}}).weight == 2


def test_a_run_that_never_trains() -> None:
    """Prevents: silence where the host ends without training; and a folder that stays."""
    folders: list[Path] = []
    with pytest.raises(PactError, match="the host to begin training"):
        in_place_of_training(folders.append)
    assert not folders[0].exists()
