"""A check of a run's file as a table: what the run will do, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.preflight.check import Check, Finding, check
from pact_plugins.preflight.run_file import Host


def show(found: Check, console: Console | None = None) -> None:
    """What the run will do, then each error and warning."""
    console = console or Console()
    table = Table(title=escape(str(found.path)), title_justify="left", show_header=False)
    for name, words in found.will.items():
        table.add_row(name, escape(words))
    if found.will:
        console.print(table)
    _show_findings("error", found.errors, console)
    _show_findings("warning", found.warnings, console)
    counts = [_count("error", found.errors), _count("warning", found.warnings)]
    console.print(", ".join(counts), highlight=False)


def require_sound(path: Path, host: Host | None = None, arguments: Sequence[str] = ()) -> Host:
    """What a run's file is for; its warnings go to standard error (arguments: see `check`).

    Raises:
        PactError: the file has errors.
    """
    found = check(path, host, arguments)
    _show_findings("warning", found.warnings, Console(stderr=True))
    return found.require_sound()


def _count(kind: str, findings: Sequence[Finding]) -> str:
    return f"{len(findings)} {kind}{'' if len(findings) == 1 else 's'}"


def _show_findings(kind: str, findings: Sequence[Finding], console: Console) -> None:
    """One paragraph each, with its key."""
    for finding in findings:
        key = f" `{finding.key}`" if finding.key else ""
        console.print(f"{kind}{key}: {finding.error}", highlight=False, markup=False, soft_wrap=True)
