"""The command `pact`."""

from __future__ import annotations

from pathlib import Path

import click

from pact_plugins import __version__
from pact_plugins.cli.caches import cache
from pact_plugins.cli.evaluation import evaluate, lm_eval_path, report, verify
from pact_plugins.cli.group import Commands
from pact_plugins.cli.tokens import inspect, tokens
from pact_plugins.cli.training import audit, check, estimate, sft


@click.group(cls=Commands)
@click.version_option(__version__, package_name="pact-plugins")
def main() -> None:
    """PACT: keep a chat model's refusals while fine-tuning it."""


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="demo-report", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out: Path, seed: int) -> None:
    """Fine-tune a tiny chat model with and without PACT, and compare.

    Example: pact demo --out demo-report
    """
    from pact_plugins.demo.comparison import run

    run(out, seed=seed)


for command in (
    tokens,
    inspect,
    cache,
    estimate,
    check,
    audit,
    sft,
    evaluate,
    lm_eval_path,
    report,
    verify,
    demo,
):
    main.add_command(command)
