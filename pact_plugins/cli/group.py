"""What the commands share: their order, how they end, and what goes to standard output."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import click

from pact_plugins.errors import PactError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the number of the signal."""

NO_BARS = "TQDM_DISABLE"
"""tqdm's own switch, which the hosts' bars know; `model.progress` goes by it too."""


class Commands(click.Group):
    """Commands in the order in which the work is done, whose expected ends are no tracebacks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # tokens and paths may hold what its code page lacks
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().invoke(ctx)
        except PactError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            # A reader that has seen enough is click's own business; an error that names no file is nobody's fault.
            if error.errno == errno.EPIPE or error.filename is None:
                raise
            raise click.ClickException(f"{error.filename}: {error.strerror}.") from error
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)  # a bar may stand on the line, or ^C
            raise click.exceptions.Exit(INTERRUPTED) from None


@dataclass(frozen=True)
class Result:
    """What a command found.

    Attributes:
        value: as JSON knows it.
        show: prints it for people.
        holds: false for a verdict "no", of which the exit code is 1.
    """

    value: Any
    show: Callable[[], Any]
    holds: bool = True


def prints_result(find: Callable[..., Result | None]) -> Callable[..., None]:
    """Gives a command `--json`, and keeps standard output for what it found: everything else goes to standard error.

    Hosts and models take the stream for their logs when they are imported, so a command imports them within.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @functools.wraps(find)
    def command(*arguments: Any, as_json: bool, **options: Any) -> None:
        with redirect_stdout(sys.stderr), _progress_bars(shown=not as_json and sys.stderr.isatty()):
            found = find(*arguments, **options)
        if found is None:  # a command of a group comes next
            return
        if as_json:
            click.echo(json.dumps(found.value, indent=1))
        else:
            found.show()
        if not found.holds:
            raise click.exceptions.Exit(1)

    return command


@contextmanager
def _progress_bars(*, shown: bool) -> Generator[None]:
    """Within, no progress bar is drawn unless `shown`: ours, and those of libraries that are imported within."""
    if shown or NO_BARS in os.environ:
        yield
        return
    os.environ[NO_BARS] = "1"
    try:
        yield
    finally:
        del os.environ[NO_BARS]
