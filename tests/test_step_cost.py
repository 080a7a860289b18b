"""The benchmark of a step's cost, on a tiny model: its figures mean nothing here, but there are some."""

from __future__ import annotations

import pytest

from benchmarks import step_cost
from benchmarks.step_cost import BASELINES, METHODS, Case
from tests import tiny


@pytest.mark.trl
def test_every_variant_takes_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a benchmark that stops because what it measures has changed."""
    case, variants = Case("trl", "full", len(tiny.tokenizer())), (*BASELINES, *METHODS)
    monkeypatch.setattr(step_cost, "model_of", lambda _case: tiny.llama())
    done = step_cost.run(case, variants, rounds=1)
    assert {variant: len(steps) for variant, steps in done.items()} == dict.fromkeys(variants, 1)
    rows = [step_cost.comparison(case, b, m, done, dict.fromkeys(variants, 1)) for b in BASELINES for m in METHODS]
    assert all(row.time_ratio_median > 0 and row.own_share > 0 for row in rows)
    assert set(rows[0].own_milliseconds) == {"split and look up", "logits", "loss", "backward"}
    assert step_cost.markdown(rows).count("\n| trl, full, 0k |") == len(rows)
