"""Anchors: prompts with the reference's own answers that ride along with every training step.

Harmless training rows show the student no request to refuse, and harmful ones show only how an affirmative answer goes
on. Anchors keep the whole refusal in view, and harmless ones beside them its limits: both enter the divergence alone,
never cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor

from pact_plugins import artefacts
from pact_plugins.answers import Document
from pact_plugins.errors import PactError
from pact_plugins.forward import collate
from pact_plugins.own_answers import answered


@dataclass(frozen=True)
class Anchors:
    """A cycle over anchor documents.

    Attributes:
        documents: prompts with the reference's answers, the answers supervised; at least one.
        per_step: rows of each optimiser step.
    """

    documents: Sequence[Document]
    per_step: int

    def batch(self, turn: int) -> dict[str, Tensor]:
        """Rows number `turn * per_step` and on, padded: `input_ids`, `attention_mask` and `labels`, on the host."""
        return collate(self._rows(turn))

    def tokens(self, turn: int) -> int:
        """Answer tokens in the rows of this turn."""
        return sum(int(document.supervised.sum()) for document in self._rows(turn))

    def _rows(self, turn: int) -> list[Document]:
        first = turn * self.per_step
        return [self.documents[i % len(self.documents)] for i in range(first, first + self.per_step)]


def save(documents: Sequence[Document], path: Path) -> None:
    """Writes anchor documents, with the name of the file: another model's anchors have another name."""
    rows = [{"input_ids": d.input_ids.tolist(), "start": int(np.argmax(d.supervised))} for d in documents]
    artefacts.write(path, {"name": path.stem, "anchors": rows})


def load(path: Path) -> list[Document]:
    """Reads what `save` wrote.

    Raises:
        PactError: no such file, or another content.
    """
    try:
        stored = _Stored.model_validate(artefacts.read(path))
        if stored.name != path.stem:
            raise ValueError(f"these are the anchors {stored.name}")
        return [answered(row.input_ids[: row.start], row.input_ids[row.start :]) for row in stored.anchors]
    except (OSError, ValueError) as error:
        raise PactError(
            expected=f"the anchors of this model in {path}",
            got=f"{type(error).__name__}: {error}",
            consequence="The run would be held to other answers than the reference's own.",
            remedy="Point `pact.cache_dir` to where the run began, or start from the original model."
            if isinstance(error, FileNotFoundError)
            else "Remove that file and start from the original model.",
        ) from error


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    input_ids: list[Annotated[int, Field(ge=0, lt=2**31)]]
    start: PositiveInt

    @model_validator(mode="after")
    def _has_an_answer(self) -> _Row:
        if self.start >= len(self.input_ids):
            raise ValueError("an anchor without an answer")
        return self


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    anchors: Annotated[list[_Row], Field(min_length=1)]
