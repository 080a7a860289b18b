"""An audit as a table: the strongest conflicts, and a line that sums all of them up."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.preflight.audit import Audit

ROWS = 20
"""Answers in the table; the file of `--out` holds all."""

WIDTH = 48
"""Characters of a prompt's end and of an answer's opening."""


def show(found: Audit, console: Console | None = None) -> None:
    """The strongest conflicts of an audit."""
    console = console or Console()
    if found.listed:
        table = Table(title="PACT: answers that go along with harmful requests", title_justify="left")
        for header in ("row", "end of the prompt", "answer", "conflict", "weight left", "tokens"):
            table.add_column(header, justify="left" if header in ("end of the prompt", "answer") else "right")
        for one in found.listed[:ROWS]:
            copies = f" (+{len(one.rows) - 1})" if len(one.rows) > 1 else ""
            texts = (_shortened(one.prompt, from_end=True), _shortened(one.text))
            figures = (f"{one.conflict:.3f}", f"{one.weight_left:.0f}", f"{one.tokens:,}")
            table.add_row(f"{one.rows[0]}{copies}", *map(escape, texts), *figures)
        console.print(table)
        if len(found.listed) > ROWS:
            console.print(f"and {len(found.listed) - ROWS:,} more: `--out FILE` writes all of them.", markup=False)
    console.print(summary(found), highlight=False, markup=False)


def summary(found: Audit) -> str:
    """One line: how much was audited and listed, and what the run does about it."""
    damping = (
        f"damping takes away {found.damped_share:.2%} of the cross-entropy's weight"
        if found.damps
        else "nothing is damped (`conflict: keep`)"
    )
    return (
        f"{found.answers:,} answers in {found.sequences:,} sequences audited, {found.listed_answers:,} listed "
        f"(conflict above {found.threshold:g}); {damping}."
    )


def _shortened(text: str, *, from_end: bool = False) -> str:
    """One line of at most `WIDTH` characters, without the codes that would move or colour a terminal's text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= WIDTH:
        return line
    return f"...{line[-WIDTH:]}" if from_end else f"{line[:WIDTH]}..."
