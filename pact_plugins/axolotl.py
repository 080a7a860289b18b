"""PACT in Axolotl: the plugin, and `axolotl pact-train`, which fails closed where `axolotl train` would fail open.

    plugins: [pact_plugins.axolotl.PactPlugin]
    pact: true

Axolotl logs a plugin that cannot be imported and trains on without it. So this module imports nothing that may be
missing beside Axolotl itself; the rest is imported in `register`, whose errors do stop the run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel

if TYPE_CHECKING:
    from pact_plugins.config import PactConfig
    from pact_plugins.preflight.dry_run import Act, T


class PactArgs(BaseModel):
    """Lets the key `pact` into Axolotl's own schema; `PactConfig` checks what it holds, in `PactPlugin.register`."""

    pact: bool | dict[str, Any] | None = None


class PactPlugin(BasePlugin):  # pyright: ignore[reportUntypedBaseClass]
    """Holds a fine-tuned chat model's refusals to those it had before."""

    def register(self, cfg: dict[str, Any]) -> None:
        """Refuses, before anything is loaded, a configuration under which PACT would be absent or wrong."""
        from pact_plugins.preflight.unserved import unserved

        if (config := self._parse(cfg)) is not None:
            for finding in unserved(cfg, "axolotl", config):
                raise finding.error

    def get_input_args(self) -> str:
        """Where Axolotl finds the schema of the key `pact`."""
        return f"{__name__}.{PactArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback that binds PACT to the trainer."""
        from pact_plugins.run.callback import PactCallback

        config = self._parse(cfg)
        if config is not None:
            _tell_template(cfg, trainer)
        return [PactCallback(trainer, config if config is not None else False)]

    @staticmethod
    def _parse(cfg: Any) -> PactConfig | None:
        from pact_plugins.config import PactConfig
        from pact_plugins.errors import PactError
        from pact_plugins.preflight.run_file import PLUGIN

        value = cfg.get("pact")
        if value is None:
            raise PactError(
                expected=f"the key `pact` beside the plugin {PLUGIN}",
                got="no such key, or an empty one",
                consequence="The run would train without PACT.",
                remedy="Write `pact: true`, a block of settings, or `pact: false` for an explicit off.",
            )
        # Axolotl hands blocks over as a dict whose misspelt reads give None: only a plain one fails loudly.
        return PactConfig.parse(dict(value) if isinstance(value, dict) else value)


def _tell_template(cfg: Any, trainer: Any) -> None:
    """Tells PACT of the chat template of the data sets, where they have one that is not the tokenizer's.

    Raises:
        PactError: their templates mark turns differently.
    """
    from axolotl.utils.chat_templates import (  # pyright: ignore[reportMissingImports]
        get_chat_template_from_config,
    )

    from pact_plugins.chat.rendered import rendered_with
    from pact_plugins.run.trainer import tokenizer_of

    tokenizer = tokenizer_of(trainer)
    # Rows of other types, and rows that hold their ids, are rendered by no template.
    entries = [e for e in cfg.get("datasets") or () if "chat_template" in str(e.get("type")).split(".")]
    trainer.chat_template = rendered_with(
        tokenizer, [(str(e["path"]), get_chat_template_from_config(cfg, e, tokenizer)) for e in entries]
    )


def in_place_of_training(path: Path, act: Act[T]) -> T:
    """What `act` makes of the run of `axolotl train path`, which is stopped before its first step.

    Raises:
        PactError: PACT is off, or would be absent or wrong in the run.
    """
    from axolotl.cli.args import TrainerCliArgs  # pyright: ignore[reportMissingImports]
    from axolotl.cli.config import load_cfg  # pyright: ignore[reportMissingImports]
    from axolotl.cli.train import do_train  # pyright: ignore[reportMissingImports]

    from pact_plugins.preflight import dry_run
    from pact_plugins.preflight.run_file import read_run_file

    config = dry_run.config_of(read_run_file(path))
    with _every_trainer(lambda trainer: dry_run.attach(trainer, config, act)):
        return dry_run.in_place_of_training(
            lambda folder: do_train(load_cfg(str(path), output_dir=str(folder), hub_model_id=None), TrainerCliArgs())
        )


@contextmanager
def _every_trainer(attach: Callable[[Any], None]) -> Generator[None]:
    """Within the block, every trainer goes through `attach` in place of getting the plugin's callback."""
    own = PactPlugin.add_callbacks_post_trainer

    def add_callbacks_post_trainer(self: PactPlugin, cfg: Any, trainer: Any) -> list[Any]:
        _tell_template(cfg, trainer)
        attach(trainer)
        return []

    PactPlugin.add_callbacks_post_trainer = add_callbacks_post_trainer
    try:
        yield
    finally:
        PactPlugin.add_callbacks_post_trainer = own


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}
)
@click.argument("config", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def pact_train(config: str, arguments: tuple[str, ...]) -> None:
    """Train like `axolotl train`, but only if CONFIG really switches PACT on (or off).

    Everything after CONFIG goes to `axolotl train`, for example `--launcher python`.
    """
    from axolotl.cli.main import cli  # pyright: ignore[reportMissingImports]

    from pact_plugins.errors import PactError
    from pact_plugins.preflight.check import require_sound

    try:
        require_sound(Path(config), "axolotl", arguments)
    except PactError as error:
        raise click.ClickException(str(error)) from error
    cli.main(["train", config, *arguments], prog_name="axolotl")
