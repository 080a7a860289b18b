"""What the tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.brief import few_prompts, without_page

# Axolotl's packing would be compiled in each process that packs, which takes far longer than to pack these few rows.
os.environ.setdefault("NUMBA_DISABLE_JIT", "1")

# Property tests: `HYPOTHESIS_PROFILE=long python -m pytest ...` searches a hundred times as far.
settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


PINS = (
    "chat/test_format.py",
    "contract/test_adapters.py::test_the_loss_is_that_of_the_full_logits",
    "contract/test_families.py::test_any_conversation",
    "contract/test_hosts.py::test_a_micro_batch_equals_the_bare_loop",
    "model/test_loading.py",
    "model/test_subset_head.py",
    "test_compatibility.py::test_a_sample_is_served_by_every_release",
    "test_golden.py",
)
"""Tests, or files of them, whose result the releases of torch, transformers, PEFT and TRL may change.

`make test` runs each test once: what needs Axolotl in its environment, all else in the newest TRL's, and in both only
these, because Axolotl pins older releases. `make test-all` runs everything in both.
"""

DEAREST = (
    "contract/test_commands.py",
    "test_example_configs.py",
    "test_docs.py",
    "demo/test_comparison.py",
    "distributed",
    "contract",
    "faults",
)
"""Files, or folders of them, that begin first: begun late, they would leave all but one process without work."""


@pytest.hookimpl(tryfirst=True)  # the marks are chosen by afterwards
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what `PINS` names, skips what needs Axolotl where there is none, and puts `DEAREST` first.

    A name with an address in it differs from process to process: two workers would not share such a test.
    """
    pins = tuple(f"tests/{name}" for name in PINS)
    for item in items:
        if item.nodeid.startswith(pins):
            item.add_marker("pins")
        if item.get_closest_marker("axolotl") and not find_spec("axolotl"):
            item.add_marker(pytest.mark.skip(reason="needs Axolotl: runs in .venv-axolotl"))
    dearest = [f"tests/{name}" for name in DEAREST]
    items.sort(key=lambda item: [not item.nodeid.startswith(name) for name in dearest])
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give these parameters an `id`, their names hold an address: {unstable}")


def pytest_collection_finish() -> None:
    """Each training collects garbage: among all that the imports made, that takes longer than the training itself."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def brief_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without the page of the report, and with few anchors to choose from."""
    without_page(monkeypatch)
    few_prompts(monkeypatch)


TESTS = Path(__file__).parent
ONE_THREAD = ("chat", "model", "storage", "method", "run", "preflight", "cli")
"""Rooms of the package whose tests know nothing but tiny models."""


@pytest.fixture(autouse=True, scope="module")
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models on one thread: two threads that share a busy core wait for each other forty times as long.

    Only for the unit tests, those beside this file and those of `ONE_THREAD`; other folders choose for themselves.
    """
    threads = torch.get_num_threads()
    if request.path.parent in (TESTS, *(TESTS / room for room in ONE_THREAD)):
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
