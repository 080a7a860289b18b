"""Ranks that build a reference cache together, and what may happen to one of them meanwhile."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pact_plugins.method import reference
from pact_plugins.model.ranks import Ranks
from pact_plugins.model.subset_head import SubsetHead
from tests import tiny
from tests.caches import IDENTITY, IDS
from tests.rows import CHAT, documents, few

FAILING_PASS = 3


def ranks_of(timeout: float) -> Ranks:
    """The ranks that this process is one of."""
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    return Ranks.of_run(timeout)


def build(
    folder: Path, disks: str = "shared", event: str | None = None, victim: int = 1, timeout: float = 60
) -> tuple[list[bool], int]:
    """Whether this run built the cache, at each of two tries, and how many forward passes this rank made.

    Args:
        folder: where the cache goes.
        disks: "own" gives each rank a disk of its own below it.
        event: what happens in one of the victim's forward passes: it "dies", "hangs", or gives "nan" from then on.
        victim: the rank to which it happens.
        timeout: seconds that ranks wait for each other.
    """
    ranks = ranks_of(timeout)
    reference.batches_by_length = partial(reference.batches_by_length, budget=60)
    head = SubsetHead(tiny.llama(), IDS)
    passes = count()
    made = 0

    def note(*_: Any) -> None:
        nonlocal made
        made = next(passes) + 1
        print("pass", flush=True)
        if ranks.rank == victim and made == FAILING_PASS:
            if event == "dies":
                os._exit(9)
            if event == "hangs":
                sys.stdin.read()
            if event == "nan":
                head.base.get_output_embeddings().weight.data.fill_(torch.nan)

    head.base.get_decoder().register_forward_hook(note)
    where = folder / str(ranks.rank) if disks == "own" else folder
    built: list[bool] = []
    with ranks.together("the test"):
        for _ in range(2):
            _, computed = reference.open_or_build(
                where, IDENTITY, documents(few(8)), head, CHAT, ranks=ranks, show_progress=False
            )
            built.append(computed.rows > 0)
    return built, made
