"""Every type of model that transformers knows, made tiny: what docs/compatibility.md says of it is so."""

from __future__ import annotations

import warnings

import pytest
import transformers

from benchmarks.compatibility import IMAGES, PAGE, TEXT, assess, line

SHOWN = PAGE.read_text(encoding="utf-8").splitlines()
ROWS = [text.strip("| ").split(" | ") for text in SHOWN if text.startswith("| ") and not text.startswith("| type ")]
"""Type, class, result and reason of each."""
SAMPLE = ["cohere", "gemma2", "gpt2", "granite", "llama", "llama4_text", "mamba", "mixtral", "phi", "qwen3_moe"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


REFUSED = {row[3].partition("; got")[0]: row[0] for row in ROWS if row[2] == "refused"}
"""A type for each thing that is expected of a model."""


@pytest.mark.trl
@pytest.mark.parametrize(
    "model_type",
    [
        pytest.param(kind, marks=() if kind in {*SAMPLE, *REFUSED.values()} else pytest.mark.release)
        for kind in [*TEXT, *IMAGES]
    ],
)
def test_what_the_page_says_is_so(model_type: str) -> None:
    """Prevents a type that is called served, and whose loss or gradient is not that of its full logits."""
    row = assess(model_type)
    assert row.result != "wrong", row.reason
    assert line(row) in SHOWN, "run `python -m benchmarks.compatibility`"


@pytest.mark.trl
def test_the_page_shows_them_all() -> None:
    """Prevents types that transformers gained or lost, and a promise of fewer of them than before."""
    assert [row[0] for row in ROWS] == [*TEXT, *IMAGES]
    served = {row[0] for row in ROWS if row[2] == "served"}
    assert len(served & {*TEXT}) >= 160
    assert {*SAMPLE} <= served
    assert len(REFUSED) >= 4


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_is_served_by_every_release(model_type: str) -> None:
    """Prevents an older transformers whose models name their parts or scales differently."""
    assert assess(model_type).result == "served"
