"""What the tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.brief import few_prompts, without_page

# Property tests: `HYPOTHESIS_PROFILE=long python -m pytest ...` searches a hundred times as far.
settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A name with an address in it differs from process to process: two workers would not share such a test."""
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
