"""Anchors: prompts with the reference's own answers that ride along with every training step.

Harmless training rows show the student no request to refuse, and harmful ones show only how an affirmative answer goes
on. Anchors keep the whole refusal in view, and harmless ones beside them its limits: both enter the divergence alone,
never cross-entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pact_plugins.answers import Document
from pact_plugins.forward import collate


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
