"""Processes that begin with everything imported: forked off a server that imported it once, and does nothing else.

What `tests.distributed.processes.start` starts begins from nothing, as under torchrun: it imports for seconds, and has
its own order of hashes.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.imported"])


class Forked:
    """A process that calls a function, with pipes as those of `subprocess.Popen`.

    Args:
        function: one that a module has.
        arguments: of the function.
        environment: variables to set, beside those of the server.
        daemon: whether it is killed with this process; it then can start no processes itself.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        daemon: bool = True,
    ) -> None:
        stdin, self._stdin = CONTEXT.Pipe(duplex=False)
        (out, stdout), (errors, stderr) = (CONTEXT.Pipe(duplex=False) for _ in range(2))
        pipes = (stdin, stdout, stderr)
        call = (pipes, dict(environment or {}), function, arguments)
        self._process = CONTEXT.Process(target=_call, args=call, daemon=daemon)
        self._process.start()
        for pipe in pipes:
            pipe.close()
        self._printed: tuple[list[str], list[str]] = ([], [])
        self._readers = [Thread(target=_read, args=each) for each in zip((out, errors), self._printed, strict=True)]
        for reader in self._readers:
            reader.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative after a signal."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait_for(self, text: str, times: int = 1) -> None:
        """Waits until the process has printed so many lines with `text`."""
        while True:
            over = not any(reader.is_alive() for reader in self._readers)
            if sum(text in line for lines in self._printed for line in [*lines]) >= times:
                return
            if over:
                pytest.fail(f"the process ended without: {text}")
            time.sleep(0.01)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Closes its input, waits for its end, and gives its output and errors."""
        self._stdin.close()
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        for reader in self._readers:
            reader.join()
        out, errors = ("".join(lines) for lines in self._printed)
        return out, errors


def _read(pipe: Connection, lines: list[str]) -> None:
    with os.fdopen(os.dup(pipe.fileno())) as stream:
        pipe.close()
        lines.extend(stream)


def _call(
    pipes: tuple[Connection, ...], environment: dict[str, str], function: Callable[..., Any], arguments: Any
) -> None:
    os.environ.update(environment)
    for number, pipe in enumerate(pipes):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    # Those of the server are of what it had in these places.
    sys.stdin, sys.stdout, sys.stderr = (open(n, "rw"[n > 0], closefd=False) for n in range(3))  # noqa: SIM115
    function(*arguments)
