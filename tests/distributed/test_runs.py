"""Whole runs in two processes: no hang, no divergence, one report, and an end for all of them when one fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pact_plugins.run.verification import verify
from pact_plugins.storage import files
from tests.distributed.processes import ended, fork, run, start
from tests.distributed.training import VARIANTS

pytestmark = pytest.mark.distributed

HOSTS = [
    pytest.param("trl", marks=pytest.mark.trl),
    pytest.param("axolotl", marks=pytest.mark.axolotl),
]


@pytest.fixture(scope="module", params=HOSTS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[Any]]:
    """The host, the folder, and what each of two ranks found in every variant.

    Those of TRL are started from nothing, each with its own order of hashes.
    """
    folder, begin = tmp_path_factory.mktemp("variants"), start if request.param == "trl" else fork
    return request.param, folder, run("training:variants", folder, begin=begin, host=request.param)


@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_stay_equal(runs: tuple[str, Path, list[Any]], variant: str) -> None:
    """Prevents: a rank that waits in a collective for one without an answer, and weights that drift apart."""
    host, folder, (first, second) = runs
    first, second = first[variant], second[variant]
    assert first["steps"] == second["steps"] >= 2
    for name, parameter in first["parameters"].items():
        assert torch.equal(parameter, second["parameters"][name])
        # Axolotl's cross-entropy of a batch without labels is not a number, with or without PACT.
        assert parameter.isfinite().all() or (host, variant) == ("axolotl", "unanswered")
    assert [entry["pact/answer_tokens"] for entry in first["logged"]] == [
        entry["pact/answer_tokens"] for entry in second["logged"]
    ]
    assert all(entry["pact/answer_tokens"] > 0 for entry in first["logged"])
    found = verify(folder / variant / "out")
    assert found.holds, found.sentence


@pytest.mark.parametrize("host", HOSTS)
def test_a_report_of_two_ranks_is_that_of_one(host: str, tmp_path: Path) -> None:
    """Prevents: ranks that run ahead while the first one asks, answers asked twice, and a report of a part of them."""
    contents = []
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        run("training:report", folder, ranks=ranks, begin=fork, host=host)
        history = files.read(folder / "out" / "pact_history.json")["log"]
        answers = (folder / "out" / "_pact_evaluation" / "against.jsonl").read_text().splitlines()
        contents.append(
            {
                "measurements": files.read(folder / "out" / "_pact_evaluation" / "evaluation.json")["measurements"],
                "answers": [json.loads(line)["response"] for line in answers],
                "probe": [e["pact/probe_harmful"] for e in history if "pact/probe_harmful" in e],
            }
        )
        assert (folder / "out" / "pact_report" / "report.html").exists()
    one, two = contents
    assert len(one["answers"]) == 24
    assert len(one["probe"]) == 3
    assert two["answers"] == one["answers"]
    assert two["probe"] == pytest.approx(one["probe"], rel=1e-4)
    assert two["measurements"] == one["measurements"]


@pytest.mark.trl
@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("streaming", "a streaming data set together with", "a streaming data set together with"),
        ("other data", "what the reference is made for to be the same", "in rank 1"),
        ("missing reference", "", "every training sequence among"),
    ],
)
def test_every_rank_stops(what: str, first: str, second: str, tmp_path: Path) -> None:
    """Prevents: an error in one rank, and another that waits for it for half an hour, or trains on."""
    (status, _, errors), (other, _, others) = ended(fork("training:fails", tmp_path, what=what))
    assert status != 0
    assert other != 0
    assert first in errors
    assert second in others
