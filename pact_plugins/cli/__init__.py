"""The command `pact`.

Modules of this folder import what a command needs within it: `pact --help` and the shell's completion load no torch.
"""

from __future__ import annotations

import click

from pact_plugins import __version__
from pact_plugins.cli.caches import cache
from pact_plugins.cli.demonstration import demo
from pact_plugins.cli.evaluation import compare, evaluate, lm_eval_path, report, verify
from pact_plugins.cli.group import Commands
from pact_plugins.cli.tokens import inspect, tokens
from pact_plugins.cli.training import audit, check, estimate, sft

__all__ = ["main"]


@click.group(cls=Commands)
@click.version_option(__version__, package_name="pact-plugins")
def main() -> None:
    """PACT: keep a chat model's refusals while fine-tuning it.

    Begin with `pact demo`, or with `pact check run.yaml`.
    """


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
    compare,
    verify,
    demo,
):
    main.add_command(command)
