"""The schema, and what it says to somebody who got it wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pact_plugins.config import NEGLIGIBLE_GATE, GateConfig, PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import loss


def test_defaults_depend_on_the_objective() -> None:
    """Prevents `paper` with damping, or `confidence` with a gate, unless asked for."""
    paper, confidence = PactConfig(objective="paper"), PactConfig()
    assert paper.active_gate is not None
    assert not paper.damps
    assert confidence.active_gate is None
    assert confidence.damps
    assert PactConfig.parse(False) is None
    assert PactConfig.parse(True) == confidence


@pytest.mark.parametrize(
    "block",
    [{}, {"hold": 0, "decay": 2.5}, {"boost": 0.0}, {"boost": 5e-5}, {"hold": 3, "boost": 0.01}],
)
def test_the_reach_is_where_the_gate_can_open(block: dict[str, Any]) -> None:
    """Prevents a reference without the prompt that stops while the gate still asks for it, or goes on for nothing."""
    gate = GateConfig(**{**block, "bias": -100})  # the sigmoid fully open, whatever the logits
    position = torch.arange(200)
    values = loss.gate(torch.zeros(200, 4), torch.zeros(200, 4), position, **gate.model_dump(exclude={"prefix"}))
    assert int((values >= NEGLIGIBLE_GATE).sum()) == gate.reach
    assert (values[gate.reach :] < NEGLIGIBLE_GATE).all()


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"wieght": 2}, ["pact.wieght", "Did you mean `weight`"]),
        ({"gate": {"slop": 2}}, ["pact.gate.slop", "Did you mean `slope`"]),
        ({"probe": {"evry": 2}}, ["pact.probe.evry", "Did you mean `every`"]),
        ({"probe": {"stop_below": 0}}, ["pact.probe", "stop_below", "greater than 0"]),
        ({"weight": 0}, ["pact.weight", "greater than 0"]),
        ({"weight": float("nan")}, ["pact.weight"]),
        ({"weight": "much"}, ["pact.weight", "much"]),
        ({"objective": "papre"}, ["pact.objective", "papre"]),
        ({"top_k": 0}, ["pact.top_k"]),
        ({"base_model": "b", "safety_tokens": [1]}, ["base_model", "safety_tokens"]),
        ("yes", ["pact:", "'yes'"]),
        (None, ["pact:"]),
    ],
)
def test_bad_blocks_are_refused_by_name(block: Any, words: list[str]) -> None:
    """Prevents a misspelt or impossible setting from being dropped in silence."""
    with pytest.raises(PactError) as caught:
        PactConfig.parse(block)
    for word in words:
        assert word in str(caught.value)


def test_paths_are_read_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a folder called `$SCRATCH` or `~` in the working folder, and token texts that are taken for paths."""
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("HOME", "/home/me")
    config = PactConfig.model_validate(
        {
            "cache_dir": "$SCRATCH/pact",
            "safety_tokens": "~/tokens.json",
            "prompts": {"harmful": "${SCRATCH}/a.txt", "harmless": "~/b.txt"},
            "eval": {"prompts": ["held-out", "$SCRATCH/c.csv:harmful"]},
        }
    )
    assert (config.cache_folder, config.safety_tokens) == (Path("/scratch/pact"), Path("/home/me/tokens.json"))
    assert (config.prompts.harmful, config.prompts.harmless) == (Path("/scratch/a.txt"), Path("/home/me/b.txt"))
    assert config.active_eval is not None
    assert config.active_eval.prompts == ("held-out", "/scratch/c.csv:harmful")
    assert PactConfig(base_model="~/base").base_model == "/home/me/base"
    assert PactConfig(safety_tokens=["$SCRATCH", "~"]).safety_tokens == ["$SCRATCH", "~"]
    for name in ("PACT_CACHE_DIR", "XDG_CACHE_HOME"):  # empty is not set: no caches in the working folder
        monkeypatch.setenv(name, "")
    assert PactConfig().cache_folder == Path("/home/me/.cache/pact_plugins")
