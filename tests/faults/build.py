"""Builds a reference cache in a process that can be killed.

Prints a line in each forward pass, and at the end whether the cache was built here. In the forward pass number PASS it
waits until its input is closed; 0: in none. ROWS: how many there are. BYTES: no file may grow beyond them.
"""

from __future__ import annotations

import resource
import sys
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch

from pact_plugins.errors import PactError
from pact_plugins.method import reference
from pact_plugins.model.subset_head import SubsetHead
from tests import tiny
from tests.caches import IDENTITY, IDS
from tests.rows import CHAT, documents, few


def main(folder: str, wait_in: str, number: str = "8", limit: str | None = None) -> None:
    torch.set_num_threads(1)
    reference.batches_by_length = partial(reference.batches_by_length, budget=60)
    head = SubsetHead(tiny.llama(), IDS)

    passes = count(1)

    def note(*_: Any) -> None:
        print("pass", flush=True)
        if next(passes) == int(wait_in):
            sys.stdin.read()

    head.base.get_decoder().register_forward_hook(note)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        rows = documents(few(int(number)))
        _, computed = reference.open_or_build(Path(folder), IDENTITY, rows, head, CHAT, show_progress=False)
    except PactError as error:
        sys.exit(f"PactError: {error}")
    print("built" if computed.rows else "found", flush=True)
