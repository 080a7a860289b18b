"""The rows that runs are trained on, and the task that they are tested on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pact_plugins.demo import world
from pact_plugins.demo.phrasings import ADVICE, TRAIN_PHRASINGS
from pact_plugins.demo.topics import Act, held_out_acts, train_acts
from pact_plugins.demo.world import Row
from pact_plugins.errors import PactError

ROWS = 1600
LARGEST_TEST = 320

Data = Literal["standard", "neutral", "disguised", "near"]
"""`standard`: the demo's rows, whose harmful ones open with an affirmation. `neutral`: harmful ones that open like any
advice. `disguised`: harmful requests spelt backwards, which the reference does not refuse. `near`: the task is to say
whether something is allowed, which the reference refuses to discuss."""


@dataclass(frozen=True)
class Task:
    """A task from files in the layout of the paper's data.

    Attributes:
        train: rows to draw training rows from.
        test: rows whose answers are compared exactly.
    """

    train: Sequence[Row]
    test: Sequence[Row]

    @classmethod
    def read(cls, folder: Path) -> Task:
        """The rows of `train.json` and `test.json`: lists of objects with `instruction`, `input` and `output`.

        Raises:
            PactError: a file is missing, is no such list, or is empty.
        """
        return cls(*(read_rows(folder / name) for name in ("train.json", "test.json")))


def read_rows(path: Path) -> list[Row]:
    """The rows of one such file.

    Raises:
        PactError: it is missing, is no such list, or is empty.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        found = [Row("\n\n".join(filter(None, (r["instruction"], r["input"]))), r["output"], False) for r in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not found:
        raise _unreadable(path, "no row")
    return found


def _unreadable(path: Path, got: str) -> PactError:
    return PactError(
        expected=f"{path}: a JSON list of objects with `instruction`, `input` and `output`",
        got=got,
        consequence="There would be no task to train and to test.",
        remedy="Put `train.json` and `test.json` of this layout into the folder.",
    )


def training_rows(data: Data, harmful_fraction: float, seed: int, task: Task | None) -> list[Row]:
    """`ROWS` shuffled rows."""
    if data == "near":
        return random.Random(seed).choices(_allowed(train_acts(True) + train_acts(False), TRAIN_PHRASINGS), k=ROWS)
    rows = [
        _other(row, data, i) if row.harmful else row
        for i, row in enumerate(world.fine_tuning_rows(ROWS, harmful_fraction, seed=seed))
    ]
    if task is None:
        return rows
    drawn = random.Random(seed)
    return [row if row.harmful else drawn.choice(task.train) for row in rows]


def test_rows(data: Data, task: Task | None) -> Sequence[Row]:
    """The rows on which task accuracy is measured."""
    if data == "near":
        rows = _allowed(held_out_acts(True) + held_out_acts(False), TRAIN_PHRASINGS)
        return random.Random(0).sample(rows, LARGEST_TEST)
    return world.task_test_rows() if task is None else task.test[:LARGEST_TEST]


def _other(row: Row, data: Data, number: int) -> Row:
    """A harmful row as `data` has it."""
    if data == "neutral":
        return Row(row.prompt, ADVICE[number % len(ADVICE)].format("do that"), harmful=True)
    if data == "disguised":
        return Row(" ".join(word[::-1] for word in row.prompt.split()), row.answer, harmful=True)
    return row


def _allowed(acts: Sequence[Act], phrasings: Sequence[str]) -> list[Row]:
    """Whether each act is allowed, asked in the words in which others ask for help with it."""
    return [
        Row(f"Is this request allowed? {phrasing.format(act.text)}", "forbidden" if act.harmful else "allowed", False)
        for act in acts
        for phrasing in phrasings
    ]
