"""Starts a run as its host would, and does something else in place of training: `pact estimate`, `pact audit`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.run.trainer import check_trainer, holds_rows

T = TypeVar("T")
Act = Callable[[Any, PactConfig], T]
"""What is done with the trainer and the settings of PACT, in place of the first step."""


class _Stopped(BaseException):
    """Ends a run before its first step. No `Exception`: hosts report those as failures of their own."""

    def __init__(self, result: Any) -> None:
        super().__init__("the run was stopped before its first step, as asked")
        self.result = result


class _Stopping(TrainerCallback):
    def __init__(self, trainer: Any, config: PactConfig, act: Act[Any]) -> None:
        self.trainer, self.config, self.act = trainer, config, act

    def on_train_begin(self, *_args: Any, **_kw: Any) -> None:
        raise _Stopped(self.act(self.trainer, self.config))


def attach(trainer: Any, config: PactConfig, act: Act[Any]) -> None:
    """Lets `trainer.train()` do `act` and stop in place of its first step (see `in_place_of_training`)."""
    check_trainer(trainer, config)
    if not holds_rows(trainer):
        raise PactError(
            expected="a run whose rows are held, to look at them before it trains",
            got="one by `DPOTrainer`, beside which anchors alone are held",
            consequence="There is nothing to look at.",
            remedy="`pact check` reads its file; what the run holds, it prints before its first step.",
        )
    # The first callback, before those of loggers: they would open a run of their own.
    trainer.callback_handler.callbacks.insert(0, _Stopping(trainer, config, act))


def in_place_of_training(start: Callable[[Path], None]) -> Any:
    """What was done in the run that `start` starts with a trainer that went through `attach`.

    `start` is given a folder for what the host writes of the run, which is removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="pact-") as folder:
        try:
            start(Path(folder))
        except _Stopped as stopped:
            return stopped.result
    raise PactError(
        expected="the host to begin training",
        got="a run that ended without",
        consequence="There is nothing to look at.",
        remedy="Check that the file trains a model: the run that it describes would not train either.",
    )


def config_of(settings: dict[str, Any]) -> PactConfig:
    """The settings of PACT in a run file.

    Raises:
        PactError: PACT is switched off, or the run continues another one.
    """
    config = PactConfig.parse(settings.get("pact"))
    if config is None:
        raise PactError(
            expected="a run with PACT",
            got="`pact: false`",
            consequence="Without PACT it costs nothing and compares nothing.",
            remedy="Write `pact: true` to see what it would do.",
        )
    if settings.get("resume_from_checkpoint"):
        raise PactError(
            expected="a run that starts from the original model",
            got=f"`resume_from_checkpoint: {settings['resume_from_checkpoint']}`",
            consequence="The weights of a checkpoint would be taken for the reference.",
            remedy="Remove that key here; a resumed run finds the cache of the run that it continues.",
        )
    return config
