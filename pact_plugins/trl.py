"""PACT on TRL's command line: `pact sft --config run.yaml` is `trl sft --config run.yaml` plus the key `pact`."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from pact_plugins.callback import PactCallback
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError, missing_extra


def sft(arguments: Sequence[str]) -> None:
    """Runs TRL's own supervised fine-tuning script with PACT on its trainer.

    Args:
        arguments: what `trl sft` takes, with a `--config` file that also has the key `pact`.

    Raises:
        PactError: TRL is not installed, there is no such file or key, or PACT cannot serve the run.
    """
    try:
        from trl.scripts import sft as script
    except ImportError as error:
        raise missing_extra("trl", "trl", "`pact sft`") from error
    path, settings = _read_config(arguments)
    config = PactConfig.parse(settings.pop("pact"))
    with tempfile.TemporaryDirectory() as folder:
        # TRL refuses keys that it does not know, so it gets the file without ours.
        rest = Path(folder) / path.name
        rest.write_text(yaml.safe_dump(settings), encoding="utf-8")
        own = [str(rest) if Path(a) == path else a for a in arguments]
        parsed = script.make_parser(prog="pact sft").parse_args_and_config(own)
        with _pact_on_every_trainer(config) as trainers:
            script.main(*parsed)
    if not trainers:
        raise PactError(
            expected="TRL's script to make its trainer through `trl.SFTTrainer`",
            got="a script that made none",
            consequence="The run went on without PACT: do not use its result.",
            remedy="Use a tested TRL release, or a script of your own with `PactCallback`.",
        )


def _read_config(arguments: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The `--config` file among the arguments, and its content."""
    values = [b for a, b in pairwise(arguments) if a == "--config"]
    if not values:
        raise PactError(
            expected="`--config FILE`, a YAML file with the key `pact`",
            got=" ".join(arguments) or "no arguments",
            consequence="The run would train without PACT.",
            remedy="Put the settings into a file: `pact sft --config run.yaml`.",
        )
    path = Path(values[-1])
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise PactError(
            expected=f"a readable YAML file {path}",
            got=f"{type(error).__name__}: {error}",
            consequence="Nothing was started.",
            remedy="Correct the path or the file.",
        ) from error
    if not isinstance(settings, dict) or "pact" not in settings:
        raise PactError(
            expected=f"the key `pact` in {path}",
            got="no such key",
            consequence="The run would train without PACT.",
            remedy="Add `pact: true`, a block of settings, or `pact: false` for an explicit off.",
        )
    return path, settings


@contextmanager
def _pact_on_every_trainer(config: PactConfig | None) -> Generator[list[Any]]:
    """Within the block, every `trl.SFTTrainer` that is made has PACT; yields the list of them."""
    import trl

    host: Any = trl
    original = host.SFTTrainer
    trainers: list[Any] = []

    def make(*args: Any, **kw: Any) -> Any:
        trainer = original(*args, **kw)
        trainer.add_callback(PactCallback(trainer, config if config is not None else False))
        trainers.append(trainer)
        return trainer

    host.SFTTrainer = make
    try:
        yield trainers
    finally:
        host.SFTTrainer = original
