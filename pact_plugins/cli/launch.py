"""Keys and options of `trl sft` that are for `accelerate launch`, which starts TRL's script, and `pact sft`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from pact_plugins.errors import PactError

CONFIG = "accelerate_config"
"""TRL's own name for the launcher's `config_file`: a file, or one of those that come with TRL."""


def keys() -> dict[str, argparse.Action | None]:
    """The launcher's options by their names as keys of a file; None for `CONFIG`."""
    from accelerate.commands.launch import launch_command_parser

    actions = launch_command_parser()._actions
    names = {o.removeprefix("--").replace("-", "_"): a for a in actions for o in a.option_strings if o.startswith("--")}
    return {**names, CONFIG: None}


def options(settings: Mapping[str, Any]) -> list[str]:
    """These settings, all of which are the launcher's, as options of a command line."""
    known, found = keys(), list[str]()
    for key, value in settings.items():
        action = known[key]
        if action is not None and action.nargs == 0:  # a switch
            found += [f"--{key}"] if value else []
        else:
            found += [f"--{key}", str(value)]
    return found


def launch(settings: Sequence[str], arguments: Sequence[str]) -> None:
    """Starts `pact sft` with `arguments` through `accelerate launch` with the options `settings`.

    Raises:
        PactError: there is no such file of settings.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from trl.cli.accelerate_config import resolve_accelerate_config_argument

    try:
        resolved = resolve_accelerate_config_argument(list(settings))
    except ValueError as error:
        raise PactError(
            expected=f"`{CONFIG}` to be a file for `accelerate launch`, or one that comes with TRL",
            got=str(error),
            consequence="Nothing was started.",
            remedy="Correct the path.",
        ) from error
    try:
        launch_command(launch_command_parser().parse_args([*resolved, "--module", "pact_plugins", "sft", *arguments]))
    except Exception as error:  # accelerate tells the exit code of what it started in one of Python's own
        if (code := getattr(error, "returncode", None)) is None:
            raise
        raise SystemExit(code) from error  # which has said why
