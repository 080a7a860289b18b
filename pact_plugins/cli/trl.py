"""PACT on TRL's command line: `pact sft --config run.yaml` is `trl sft --config run.yaml` plus the key `pact`.

Keys for the launcher do what they do there: `pact sft` starts itself again through `accelerate launch`, without them.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pact_plugins.cli import launch
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError, missing_extra
from pact_plugins.preflight import dry_run, run_file
from pact_plugins.preflight.check import require_sound
from pact_plugins.preflight.dry_run import Act, T
from pact_plugins.preflight.run_file import read_run_file
from pact_plugins.run.callback import PactCallback


def sft(arguments: Sequence[str]) -> None:
    """Runs TRL's own supervised fine-tuning script with PACT on its trainer.

    Args:
        arguments: what `trl sft` takes, with a `--config` file that also has the key `pact`.

    Raises:
        PactError: TRL is not installed, `pact check` finds errors in the file, or PACT cannot serve the run.
    """
    if find_spec("trl") is None:
        raise missing_extra("trl", "trl", "`pact sft`")
    path = _config_file(arguments)
    require_sound(path, "trl", arguments)
    settings, arguments, launcher = _parted(read_run_file(path), arguments)
    if launcher and "LOCAL_RANK" not in os.environ:  # nothing has launched this process yet
        with _in_place_of(path, settings, arguments) as own:
            launch.launch(launcher, own)
        return
    with run_file.variables(settings):
        config = PactConfig.parse(settings.pop("pact"))
    _run_script(
        path,
        settings,
        arguments,
        lambda trainer: trainer.add_callback(PactCallback(trainer, config if config is not None else False)),
    )


def in_place_of_training(path: Path, act: Act[T]) -> T:
    """What `act` makes of the run of `pact sft --config path`, which is stopped before its first step.

    Raises:
        PactError: there is no such file or key, or PACT is off or cannot serve the run.
    """
    settings, arguments, _ = _parted(read_run_file(path), ["--config", str(path)])
    with run_file.variables(settings):
        config = dry_run.config_of(settings)
    del settings["pact"]
    return dry_run.in_place_of_training(
        lambda folder: _run_script(
            path,
            {**settings, "output_dir": str(folder), "push_to_hub": False},
            arguments,
            lambda trainer: dry_run.attach(trainer, config, act),
        )
    )


def _run_script(path: Path, settings: dict[str, Any], arguments: Sequence[str], attach: Callable[[Any], None]) -> None:
    """TRL's own script, with `settings` in place of the file `path`, and with every trainer through `attach`."""
    from trl.scripts import sft as script

    with _in_place_of(path, settings, arguments) as own:
        parsed = script.make_parser(prog="pact sft").parse_args_and_config(own)
        with _every_trainer(attach) as trainers:
            script.main(*parsed)
    if not trainers:
        raise PactError(
            expected="TRL's script to make its trainer through `trl.SFTTrainer`",
            got="a script that made none",
            consequence="The run went on without PACT: do not use its result.",
            remedy="Use a tested TRL release, or a script of your own with `PactCallback`.",
        )


@contextmanager
def _in_place_of(path: Path, settings: dict[str, Any], arguments: Sequence[str]) -> Generator[list[str]]:
    """The arguments, with a file of these settings in place of `path`: TRL refuses keys that it does not know."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / path.name
        other.write_text(yaml.safe_dump(settings), encoding="utf-8")
        yield [str(other) if Path(a) == path else a for a in arguments]


def _parted(settings: dict[str, Any], arguments: Sequence[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Settings and arguments for TRL's script, and options for what launches it.

    Raises:
        PactError: there are keys or options that neither of them knows.
    """
    from trl.scripts import sft as script

    parser = script.make_parser(prog="pact sft")
    # `env` it takes out of the file before it looks at the others.
    given = {str(key): value for key, value in settings.items() if key not in ("env", "pact")}
    left = [option.removeprefix("--") for option in parser.set_defaults_with_config(**given)[::2]]
    _, over = parser.parse_known_args(_without(arguments, ["--config", str(_config_file(arguments))]))
    launcher = launch.keys()
    if unknown := [key for key in (*left, *run_file.options(over)) if key not in launcher]:
        known = [field.name for kind in parser.dataclass_types for field in dataclasses.fields(kind)]
        near = [match for key in unknown for match in difflib.get_close_matches(key, [*known, *launcher], n=1)]
        raise PactError(
            expected="keys that TRL knows",
            got=" and ".join(f"`{key}`" for key in unknown),
            consequence="Nothing was started.",
            remedy=f"Did you mean {' and '.join(f'`{key}`' for key in near)}?" if near else "Correct or remove them.",
        )
    for_launcher = [*launch.options({key: given[key] for key in left}), *over]
    return {key: value for key, value in settings.items() if key not in left}, _without(arguments, over), for_launcher


def _without(arguments: Sequence[str], taken: Sequence[str]) -> list[str]:
    """The arguments without those that were taken, in their order."""
    left, kept = deque(taken), list[str]()
    for argument in arguments:
        if left and argument == left[0]:
            left.popleft()
        else:
            kept.append(argument)
    return kept


def _config_file(arguments: Sequence[str]) -> Path:
    """The `--config` file among the arguments."""
    values = [b for a, b in pairwise(arguments) if a == "--config"]
    if not values:
        raise PactError(
            expected="`--config FILE`, a YAML file with the key `pact`",
            got=" ".join(arguments) or "no arguments",
            consequence="The run would train without PACT.",
            remedy="Put the settings into a file: `pact sft --config run.yaml`.",
        )
    return Path(values[-1])


@contextmanager
def _every_trainer(attach: Callable[[Any], None]) -> Generator[list[Any]]:
    """Within the block, every `trl.SFTTrainer` that is made goes through `attach`; yields the list of them."""
    import trl

    host: Any = trl
    original = host.SFTTrainer
    trainers: list[Any] = []

    def make(*args: Any, **kw: Any) -> Any:
        trainer = original(*args, **kw)
        attach(trainer)
        trainers.append(trainer)
        return trainer

    host.SFTTrainer = make
    try:
        yield trainers
    finally:
        host.SFTTrainer = original
