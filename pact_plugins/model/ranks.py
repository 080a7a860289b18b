"""`Ranks`: what the processes of a run share outside its training steps, so that all of them go on, or all stop.

They meet in one kind of collective alone: each hands in a value, or that it has failed, and is given those of all. A
rank that fails hands that in at the next meeting, whatever the others meet for, and there all of them stop. A rank that
does not come is an error too, which names it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch.distributed as dist

from pact_plugins.errors import PactError

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)


class RankError(PactError):
    """Another process has failed, or does not answer."""


@dataclass(frozen=True)
class _Failure:
    error: str


@dataclass(frozen=True)
class Ranks:
    """The processes of one run; every method is to be called by all of them, in the same order.

    Attributes:
        rank, size: number of this process, and how many there are.
        timeout: seconds to wait for the others.
        group: process group over gloo; None for a single process, which waits for nobody.

    Raises:
        RankError: another process has failed, or has not come in time. Any method may raise it.
    """

    rank: int = 0
    size: int = 1
    timeout: float = math.inf
    group: Any = None

    @classmethod
    def of_run(cls, timeout: float) -> Ranks:
        """Those of the process group that the trainer has made, if it has."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        # One of our own, whatever the trainer's: over gloo, missing ranks can be named, and no GPU is waited for.
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return cls(dist.get_rank(), dist.get_world_size(), timeout, group)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    @contextmanager
    def together(self, what: str) -> Generator[None]:
        """A block that all processes leave together: by its end, or by an error as soon as one of them has failed."""
        try:
            yield
        except RankError:  # the others know
            raise
        except Exception as error:
            try:
                self._meet(_Failure(f"{type(error).__name__}: {error}"), what)
            except RankError:
                logger.warning("PACT: not every other process could be told that this one stops.")
            raise
        self.exchange(None, what)

    def exchange(self, value: T, what: str) -> list[T]:
        """The values of all processes, by rank; `what` they are busy with, for errors."""
        found = self._meet(value, what)
        failed = {rank: message.error for rank, message in enumerate(found) if isinstance(message, _Failure)}
        if failed:
            raise RankError(
                expected=f"every process to succeed in {what}",
                got="; ".join(f"a failure of rank {rank} ({error})" for rank, error in failed.items()),
                consequence="Without it the others would wait for ever, or go on with something else.",
                remedy="See the error of that rank.",
            )
        return cast("list[T]", found)

    def first(self, make: Callable[[], T], what: str) -> T:
        """What `make` gives in the first process, in which alone it is called."""
        return cast("T", self.exchange(make() if self.is_first else None, what)[0])

    def agree(self, facts: dict[str, Any], what: str) -> None:
        """Makes sure that the facts are the same everywhere.

        Raises:
            PactError: they are not.
        """
        for rank, other in enumerate(self.exchange(facts, what)):
            if differing := [name for name in facts if other[name] != facts[name]]:
                raise PactError(
                    expected=f"{what} to be the same in every process",
                    got="; ".join(
                        f"{name} = {facts[name]} in rank {self.rank} and {other[name]} in rank {rank}"
                        for name in differing
                    ),
                    consequence="The processes would be held to different references.",
                    remedy="Give every process the same model, data, seed and settings.",
                )

    def until_all(self, ready: Callable[[], bool], what: str) -> None:
        """Calls `ready`, which returns before the timeout, until it has been true in every process."""
        done = ready()
        while not all(self.exchange(done, what)):
            done = done or ready()

    def part(self, work: Sequence[T]) -> list[T]:
        """What this process does of the work: the same number everywhere, filled up with repetitions of the last."""
        return [work[min(start + self.rank, len(work) - 1)] for start in range(0, len(work), self.size)]

    def merged(self, work: Sequence[T], results: Iterable[R], what: str) -> Iterator[tuple[T, R]]:
        """All of the work with its results, in order and as they come; `results` are those of this process's part."""
        for start, result in zip(range(0, len(work), self.size), results, strict=True):
            # What was repeated is beyond the end of the work.
            yield from zip(work[start : start + self.size], self.exchange(result, what), strict=False)

    def _meet(self, message: Any, what: str) -> list[Any]:
        if self.group is None:
            return [message]
        messages: list[Any] = [None] * self.size
        try:
            dist.monitored_barrier(self.group, timedelta(seconds=self.timeout), wait_all_ranks=True)
            dist.all_gather_object(messages, message, self.group)
        except RuntimeError as error:
            raise RankError(
                expected=f"all {self.size} processes to come as far in {what} within {self.timeout:,g} s",
                got=f"in rank {self.rank}: {str(error).strip().splitlines()[0]}",
                consequence="This process would wait for ever.",
                remedy="Look for the first error in the output of the rank that is missing. If it was only slow, give "
                "it more time: `ddp_timeout`, in seconds.",
            ) from error
        return messages


ALONE = Ranks()
