"""A check of a run's file as a table: what the run will do, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.checking import Check, Finding


def show(found: Check, console: Console | None = None) -> None:
    """What the run will do, then each error and warning."""
    console = console or Console()
    table = Table(title=escape(str(found.path)), title_justify="left", show_header=False)
    for name, words in found.will.items():
        table.add_row(name, escape(words))
    if found.will:
        console.print(table)
    show_findings("error", found.errors, console)
    show_findings("warning", found.warnings, console)
    console.print(f"{len(found.errors)} errors, {len(found.warnings)} warnings", highlight=False)


def show_findings(kind: str, findings: Sequence[Finding], console: Console) -> None:
    """One paragraph each, with its key."""
    for finding in findings:
        key = f" `{finding.key}`" if finding.key else ""
        console.print(f"{kind}{key}: {finding.error}", highlight=False, markup=False, soft_wrap=True)
