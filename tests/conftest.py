"""What the unit tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Property tests: `HYPOTHESIS_PROFILE=long python -m pytest ...` searches a hundred times as far.
settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="module")
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models on one thread: two threads that share a busy core wait for each other forty times as long.

    Only for the unit tests beside this file; the folders below choose for themselves.
    """
    threads = torch.get_num_threads()
    if request.path.parent == Path(__file__).parent:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
