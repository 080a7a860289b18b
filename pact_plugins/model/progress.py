"""What a run shows people: progress bars, and what it prints.

A stream that cannot take it must not end the run, nor cost its weights.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

logger = logging.getLogger(__name__)

SECONDS_PER_LINE = 30.0
"""Between the lines that a log gets in place of a progress bar."""


class _Replacing:
    """A stream, with an escape for each character that its encoding lacks: a log may be in any code page."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        encoding = self._stream.encoding or "utf-8"
        return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))


def tell(what: Any, console: Console | None = None, **how: Any) -> None:
    """Prints anything that rich prints, and how; on standard output, unless there is a console for it."""
    try:
        console = console or Console(file=cast(Any, _Replacing(sys.stdout) if sys.stdout else None))
        console.print(what, **how)
    except (OSError, ValueError, SystemExit) as error:  # a closed stream, a full disk; rich exits where nobody reads
        logger.warning("PACT: what it tells about this run cannot be shown (%s: %s).", type(error).__name__, error)


def progress(items: Iterable[T], description: str, total: int, shown: bool = True, *, done: int = 0) -> Iterator[T]:
    """The items, with a progress bar; `done` of the total were done before (see `bar`)."""
    with bar(description, total, shown, done=done) as reached:
        for number, item in enumerate(items, done + 1):
            yield item
            reached(number)


@contextmanager
def bar(description: str, total: int, shown: bool = True, *, done: int = 0) -> Generator[Callable[[float], None]]:
    """A progress bar; it yields a function that is told how much of the total has been reached.

    On standard error. A log would fill with a bar: where there is no terminal it gets a line every `SECONDS_PER_LINE`.
    `TQDM_DISABLE`, the switch of most other bars, switches off both.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    shown = shown and not os.environ.get("TQDM_DISABLE")
    started = said = monotonic()

    def reached(count: float) -> None:
        nonlocal said
        drawn.update(task, completed=count)
        now = monotonic()
        if shown and drawn.disable and now - said >= SECONDS_PER_LINE and done < count < total:
            said, left = now, (now - started) * (total - count) / (count - done)
            line = f"{description}: {count:,.0f} of {total:,}, about {left / 60:.0f} min left"
            tell(line, console, soft_wrap=True, markup=False, highlight=False)

    with Progress(*columns, console=console, disable=not (shown and console.is_interactive)) as drawn:
        task = drawn.add_task(description, total=total, completed=done)
        yield reached
