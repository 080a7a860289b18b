"""Commands on the file of a run, before and instead of it: `pact check`, `pact estimate`, `pact audit`, `pact sft`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from pact_plugins.config import PactConfig
from pact_plugins.errors import missing_extra

T = TypeVar("T")


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def check(path: Path, as_json: bool) -> None:
    """Show what the run of a file will do, and everything in it that would stop it or leave PACT out.

    Exits with 1 if there are errors. `pact sft` and `axolotl pact-train` ask the same before they start.

    Example: pact check run.yaml
    """
    from pact_plugins.check_table import show
    from pact_plugins.checking import check as of_file

    found = of_file(path)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        show(found)
    if not found.sound:
        raise click.exceptions.Exit(1)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def sft(arguments: tuple[str, ...]) -> None:
    """Fine-tune like `trl sft`, with the key `pact` in the file.

    Example: pact sft --config run.yaml
    """
    from pact_plugins.trl import sft as run

    run(arguments)


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def estimate(path: Path, as_json: bool) -> None:
    """Show what PACT will cost in the run of a file for `pact sft` or Axolotl.

    Loads model and data as the run would, and stops before its first step. Of what the run would write, only the
    host's own tokenised data set stays.

    Example: pact estimate run.yaml
    """
    # Standard output is for the estimate alone: hosts take the stream for their logs when they are imported.
    with redirect_stdout(sys.stderr):
        from pact_plugins.cost_report import show
        from pact_plugins.estimate import estimate as of_trainer

        estimated = _in_place_of_training(path, of_trainer, "`pact estimate`")
    if as_json:
        click.echo(json.dumps(estimated.as_dict(), indent=1))
    else:
        show(estimated)


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the listed answers as JSON lines.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="List the answers whose conflict is above this. Default: `pact.conflict_threshold` of the file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def audit(path: Path, out: Path | None, threshold: float | None, as_json: bool) -> None:
    """List the training rows whose answers the model would refuse to give.

    Loads model and data as the run of a file for `pact sft` or Axolotl would, computes the reference (the run finds it
    again), and stops before the first step.

    Example: pact audit run.yaml --out audit.jsonl
    """
    # Standard output is for the audit alone: hosts take the stream for their logs when they are imported.
    with redirect_stdout(sys.stderr):
        from pact_plugins.audit import audit as of_trainer
        from pact_plugins.audit_table import show

        found = _in_place_of_training(path, partial(of_trainer, threshold=threshold), "`pact audit`")
        if out is not None:
            found.save(out)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=1))
    else:
        show(found)


def _in_place_of_training(path: Path, act: Callable[[Any, PactConfig], T], command: str) -> T:
    """What `act` makes of the trainer and the settings of a file's run, which is stopped before its first step."""
    from pact_plugins.check_table import require_sound

    host = require_sound(path)
    if find_spec(host) is None:
        raise missing_extra(host, host, f"{command} of this file")
    if host == "trl":
        from pact_plugins.trl import in_place_of_training
    else:
        from pact_plugins.axolotl import in_place_of_training
    return in_place_of_training(path, act)
