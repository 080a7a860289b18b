"""Every type of model that transformers knows, made tiny: what docs/compatibility.md says of it is so."""

from __future__ import annotations

import warnings

import pytest
import transformers

from benchmarks.compatibility import IMAGES, PAGE, TEXT, assess, line

SHOWN = PAGE.read_text(encoding="utf-8").splitlines()
SAMPLE = ["cohere", "gemma2", "gpt2", "granite", "llama", "llama4_text", "mamba", "mixtral", "phi", "qwen3_moe"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


@pytest.mark.trl
@pytest.mark.parametrize("model_type", [*TEXT, *IMAGES])
def test_what_the_page_says_is_so(model_type: str) -> None:
    """Prevents a type that is called served, and whose loss or gradient is not that of its full logits."""
    row = assess(model_type)
    assert row.result != "wrong", row.reason
    assert line(row) in SHOWN, "run `python -m benchmarks.compatibility`"


@pytest.mark.trl
def test_the_page_shows_them_all() -> None:
    """Prevents types that transformers gained or lost, and a promise of fewer of them than before."""
    rows = [text.split(" | ") for text in SHOWN if text.startswith("| ") and not text.startswith("| type ")]
    assert [row[0].removeprefix("| ") for row in rows] == [*TEXT, *IMAGES]
    served = {row[0].removeprefix("| ") for row in rows if row[2] == "served"}
    assert len(served & {*TEXT}) >= 160
    assert {*SAMPLE} <= served


@pytest.mark.parametrize("model_type", SAMPLE)
def test_a_sample_is_served_by_every_release(model_type: str) -> None:
    """Prevents an older transformers whose models name their parts or scales differently."""
    assert assess(model_type).result == "served"
