"""Safety tokens as a table: each with its weight, and how far it depends on the prompts that it was found with."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.method.safety_tokens import SafetyTokens


def show(found: SafetyTokens, title: str, console: Console | None = None) -> None:
    """Every token, then how they were found, then what there is to doubt."""
    console = console or Console()
    table = Table(title=f"{title}: {len(found.ids)} safety tokens, {len(found.positive)} held", title_justify="left")
    columns = ["id", "token", "weight", *(["95% interval", "held again", "example"] if found.stability else [])]
    for header in columns:
        table.add_column(header, justify="left" if header in ("token", "example") else "right", overflow="fold")
    for i, (token, text, weight) in enumerate(zip(found.ids, found.texts, found.weights, strict=True)):
        row = [str(token), escape(repr(text)), f"{weight:.4f}" if weight else "not held"]
        if known := found.stability:
            interval = f"{known.low[i]:.3f} to {known.high[i]:.3f}"
            row += [interval, f"{known.held[i]:.0%}", escape(known.examples[i].replace("\n", " "))]
        table.add_row(*row)
    console.print(table)
    for key, value in found.provenance.items():
        console.print(f"{key}: {value}", highlight=False, markup=False)
    if known := found.stability:
        console.print(f"weight found again in a resample of the prompts: {found.agreement:.1%}", highlight=False)
        console.print(f"separation of the two sides: {known.separation:.3f} (0.5 is chance)", highlight=False)
        if known.refusals is not None:
            words = "own answers to harmful prompts that refuse"
            console.print(f"{words}: {known.refusals:.1%}", highlight=False)
    for doubt in found.doubts:
        console.print(f"warning: {doubt}", highlight=False, markup=False)


def show_difference(a: SafetyTokens, b: SafetyTokens) -> None:
    """Tokens that only one of two sets holds, and by how much the weights of the others differ."""
    left, right = a.held, b.held
    texts = dict(zip((*a.ids, *b.ids), (*a.texts, *b.texts), strict=True))
    table = Table(title=f"{len(left.keys() & right.keys())} tokens held by both", title_justify="left")
    for header in ("id", "token", "first", "second"):
        table.add_column(header, justify="left" if header == "token" else "right")
    for token in sorted(left.keys() | right.keys(), key=lambda t: -max(left.get(t, 0), right.get(t, 0))):
        weights = [f"{side[token]:.4f}" if token in side else "not held" for side in (left, right)]
        table.add_row(str(token), escape(repr(texts[token])), *weights)
    Console().print(table)
