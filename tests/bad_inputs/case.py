"""What a bad input is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer, TrainingArguments, default_data_collator

from pact_plugins.config import PactConfig
from pact_plugins.run.binding import Binding
from pact_plugins.run.trainer import check_trainer
from tests import tiny

ROWS = [{"input_ids": [0, 7, 7, 8, 9], "labels": [-100, -100, -100, 8, 9]}] * 2


@dataclass(frozen=True)
class BadInput:
    """Something that must be refused.

    Attributes:
        name: what is wrong, for people.
        act: does it, in an empty folder of its own; must raise a `PactError`.
        message: a regular expression that the error's text has to match: its family, with the key or file at fault.
    """

    name: str
    act: Callable[[Path], Any]
    message: str


@dataclass(frozen=True)
class Begun:
    """Begins a run under PACT; whatever looks at the run before it begins has to say what the run says.

    Attributes:
        make: makes its trainer and settings in a folder.
    """

    make: Callable[[Path], tuple[Any, PactConfig]]

    def __call__(self, folder: Path) -> None:
        trainer, config = self.make(folder)
        Binding(trainer, config).prepare()

    def instead(self, folder: Path, look: Callable[[Any, PactConfig], Any]) -> None:
        """Begins the run, and looks at it in place of training."""
        trainer, config = self.make(folder)
        check_trainer(trainer, config)
        look(trainer, config)


@dataclass(frozen=True)
class Section:
    """Bad inputs of one kind."""

    title: str
    inputs: Sequence[BadInput]


def written(content: str | bytes, name: str, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads a file that holds `content`."""

    def act(folder: Path) -> Any:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return read(path)

    return act


def given(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Callable[[Path], Any]:
    """Calls a function that needs no folder."""
    call = functools.partial(function, *arguments, **settings)
    return lambda _folder: call()


def trainer_on(
    folder: Path,
    data: Any = None,
    tokenizer: Any = "tiny",
    model_init: Callable[[], Any] | None = None,
    model: Callable[[], Any] = tiny.llama,
    **settings: Any,
) -> Any:
    """Transformers' own trainer: what every host is derived from."""
    args = TrainingArguments(
        output_dir=str(folder / "out"), use_cpu=True, report_to=[], max_steps=1, disable_tqdm=True, **settings
    )
    return Trainer(
        model=None if model_init else model(),
        model_init=model_init,
        args=args,
        train_dataset=Dataset.from_list(ROWS) if data is None else data,
        processing_class=tiny.tokenizer() if tokenizer == "tiny" else tokenizer,
        data_collator=default_data_collator,
    )


def config(folder: Path, **settings: Any) -> PactConfig:
    plain = {"cache_dir": folder / "cache", "safety_tokens": [40, 41], "anchors": 0, "eval": False}
    return PactConfig(**{**plain, **settings})
