"""`pact demo`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from pact_plugins.cli.group import Result, prints_result


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo-report",
    show_default=True,
    help="The folder of the report.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the rows and of the training runs.")
@prints_result
def demo(out: Path, seed: int) -> Result:
    """Compare fine-tuning with and without PACT.

    Fine-tunes the shipped tiny chat model four times, on a task with harmful rows, and asks each result held-out
    prompts. Takes minutes on a CPU. Writes a report (a page, Markdown and JSON) into the folder --out.

    \b
    Example:
      pact demo --out demo-report
    """
    from pact_plugins.demo.comparison import run, show

    results = run(out, seed=seed)
    return Result([asdict(result) for result in results], partial(show, results, out))
