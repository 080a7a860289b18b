"""Runs a function in several processes, as ranks of one process group over gloo, and gives what each returned.

The ranks are started one by one rather than by torchrun, which kills all of them as soon as one ends badly: so a test
sees which of them stop by themselves.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tests.forked import Forked

LIMIT = 240
"""Seconds that a process may take; far more than it needs."""

Rank = subprocess.Popen[str] | Forked


def start(function: str, folder: Path, *, ranks: int = 2, **arguments: Any) -> list[subprocess.Popen[str]]:
    """Starts `function` ("module:name", below `tests.distributed`) in each rank, with `folder` and the arguments."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", __name__, function, str(folder), json.dumps(arguments)]
    return [
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for environment in _environments(ranks)
    ]


def fork(function: str, folder: Path, *, ranks: int = 2, **arguments: Any) -> list[Forked]:
    """The same in processes that need not import anything."""
    call = (main, function, str(folder), json.dumps(arguments))
    return [Forked(*call, environment=environment) for environment in _environments(ranks)]


def _environments(ranks: int) -> Iterator[dict[str, str]]:
    """The variables that torchrun sets for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for rank in range(ranks):
        yield {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }


def ended(processes: Sequence[Rank], limit: float = LIMIT) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each process; all of them are gone afterwards."""
    try:
        outputs = [process.communicate(timeout=limit) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


def run(function: str, folder: Path, *, ranks: int = 2, begin: Any = start, **arguments: Any) -> list[Any]:
    """What `function` returned in each rank, all of which must end well; `begin`: `start` or `fork`."""
    for rank, (status, _, errors) in enumerate(ended(begin(function, folder, ranks=ranks, **arguments))):
        assert status == 0, f"rank {rank} of {ranks}: {errors[-6000:]}"
    return [torch.load(_result(folder, rank, ranks), weights_only=False) for rank in range(ranks)]


def _result(folder: Path, rank: int, ranks: int) -> Path:
    return folder / f"result-{rank}-of-{ranks}.pt"


def main(function: str, folder: str, arguments: str) -> None:
    torch.set_num_threads(1)
    module, name = function.split(":")
    result = getattr(import_module(f"tests.distributed.{module}"), name)(Path(folder), **json.loads(arguments))
    torch.save(result, _result(Path(folder), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The trainer's objects keep process groups, and their threads, alive: an interpreter that is torn down around these
    # is aborted now and then ("terminate called without an active exception"), with everything done and written.
    os._exit(0)
