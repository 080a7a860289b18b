"""The package against the results of the paper's authors' code."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.golden import check, main

FOLDER = Path(__file__).parent / "golden"
CASES = list(check(FOLDER))


@pytest.mark.parametrize("result", CASES, ids=lambda r: f"{r['case']}-{r['quantity']}")
def test_matches_the_authors_code(result: dict[str, object]) -> None:
    """Prevents a `paper` objective that trains plausibly and is another method."""
    assert result["ok"], result


def test_every_case_is_run() -> None:
    """Prevents a green check over no cases."""
    assert {r["case"] for r in CASES} == {case["file"] for case in json.loads((FOLDER / "index.json").read_text())}


def test_a_wrong_result_fails(tmp_path: Path) -> None:
    """Prevents an oracle that accepts anything."""
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    data = load_file(tmp_path / "loss_0.safetensors")
    save_file({**data, "kl": data["kl"] * 1.001}, tmp_path / "loss_0.safetensors")
    assert main(tmp_path) == 1
