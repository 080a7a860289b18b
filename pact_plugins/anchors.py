"""Anchors: prompts with the reference's own answers that ride along with every training step.

Harmless training rows show the student no request to refuse, and harmful ones show only how an affirmative answer goes
on. Anchors keep the whole refusal in view, and harmless ones beside them its limits: both enter the divergence alone,
never cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
        first = turn * self.per_step
        return collate([self.documents[i % len(self.documents)] for i in range(first, first + self.per_step)])


def save(documents: Sequence[Document], path: Path) -> None:
    """Writes anchor documents."""
    rows = [{"input_ids": d.input_ids.tolist(), "start": int(np.argmax(d.supervised))} for d in documents]
    artefacts.write(path, {"anchors": rows})


def load(path: Path) -> list[Document]:
    """Reads what `save` wrote.

    Raises:
        PactError: no such file, or another content.
    """
    try:
        rows = artefacts.read(path)["anchors"]
        return [answered(row["input_ids"][: row["start"]], row["input_ids"][row["start"] :]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PactError(
            expected=f"the anchors of this model in {path}",
            got=f"{type(error).__name__}: {error}",
            consequence="The run would be held to other answers than the reference's own.",
            remedy="Remove that file and start from the original model.",
        ) from error
