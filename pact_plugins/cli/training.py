"""Commands on the file of a run, before and instead of it: `pact check`, `pact estimate`, `pact audit`, `pact sft`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import click

from pact_plugins.cli.group import Result, prints_result
from pact_plugins.config import PactConfig
from pact_plugins.errors import missing_extra

T = TypeVar("T")

_RUN_FILE = click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="RUN_FILE")


@click.command()
@_RUN_FILE
@prints_result
def estimate(path: Path) -> Result:
    """Show what PACT will cost in a run.

    Loads model and data as `pact sft` or Axolotl would with this file, and stops before the first step. Of what the run
    would write, only the host's own tokenised data set stays.

    \b
    Example:
      pact estimate run.yaml
    """
    from pact_plugins.preflight.estimate import estimate as of_trainer
    from pact_plugins.preflight.estimate import show

    found = _in_place_of_training(path, of_trainer, "`pact estimate`")
    return Result(found.as_dict(), partial(show, found))


@click.command()
@_RUN_FILE
@click.option("--deep", is_flag=True, help="Load model and data, and do all that the run does before its first step.")
@prints_result
def check(path: Path, deep: bool) -> Result:
    """Find what is wrong with the file of a run.

    Shows what the run will do, and what would leave PACT out or stop the run as far as files tell: the run's own, and
    whether local models and data are there, hold anything, and have the chat template that they need. Loads nothing,
    and does not ask the host: keys that it does not know come up when the run starts. Exits with 1 if there is an
    error. `pact sft` and `axolotl pact-train` ask the same first.

    With `--deep` the tokens and the reference are made too (the run finds them again), and both guards of the start are
    shown: what share of the supervised assistant tokens is constrained, and how far the reference is from the model on
    batches of the trainer.

    \b
    Example:
      pact check run.yaml
    """
    from pact_plugins.preflight.check import check as of_file
    from pact_plugins.preflight.check import show

    found = of_file(path)
    result = Result(found.as_dict(), partial(show, found), holds=found.sound)
    if not (deep and found.sound):
        return result
    from pact_plugins.preflight.guards import guards
    from pact_plugins.preflight.guards import show as show_guards

    seen = _in_place_of_training(path, guards, "`pact check --deep`")

    def show_both() -> None:
        show(found)
        show_guards(seen)

    return Result({**result.value, "guards": seen.as_dict()}, show_both)


@click.command()
@_RUN_FILE
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the listed answers as JSON lines.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="List the answers whose conflict is above this. Default: `pact.conflict_threshold` of the file.",
)
@prints_result
def audit(path: Path, out: Path | None, threshold: float | None) -> Result:
    """List rows that go along with harmful requests.

    Loads model and data as `pact sft` or Axolotl would with this file, computes the reference (the run finds it again),
    and stops before the first step. Listed are the training rows that ask for harm and do not refuse.

    \b
    Example:
      pact audit run.yaml --out audit.jsonl
    """
    from pact_plugins.preflight.audit import audit as of_trainer
    from pact_plugins.preflight.audit import show

    found = _in_place_of_training(path, partial(of_trainer, threshold=threshold), "`pact audit`")
    if out is not None:
        found.save(out)
    return Result(found.as_dict(), partial(show, found))


@click.command(context_settings={"ignore_unknown_options": True}, options_metavar="")
@click.argument("arguments", nargs=-1, type=click.Path(), metavar="--config RUN_FILE [OPTIONS OF TRL]...")
def sft(arguments: tuple[str, ...]) -> None:
    """Fine-tune with TRL, under PACT.

    What `trl sft --config RUN_FILE` does, with the key `pact` in the file and all options that `trl sft --help` lists.
    Writes the model, evidence and a report into `output_dir` of the file.

    \b
    Example:
      pact sft --config run.yaml
    """
    from pact_plugins.cli.trl import sft as run

    run(arguments)


def _in_place_of_training(path: Path, act: Callable[[Any, PactConfig], T], command: str) -> T:
    """What `act` makes of the trainer and the settings of a file's run, which is stopped before its first step."""
    from pact_plugins.preflight.check import require_sound

    host = require_sound(path)
    if find_spec(host) is None:
        raise missing_extra(host, host, f"{command} of this file")
    if host == "trl":
        from pact_plugins.cli.trl import in_place_of_training
    else:
        from pact_plugins.axolotl import in_place_of_training
    return in_place_of_training(path, act)
