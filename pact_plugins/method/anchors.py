"""Anchors: prompts with the reference's own answers that ride along with every training step.

Harmless training rows show the student no request to refuse, and harmful ones show only how an affirmative answer goes
on. Anchors keep both a refusal and its limits in view: harmful prompts, and harmless ones that look like them. At these
the task has nothing to teach, so all that the reference might say is constrained, not the safety tokens alone: where
ordinary answers fade, a refusal is what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pact_plugins.chat.answers import Document
from pact_plugins.method.asking import Asked
from pact_plugins.model.forward import collate

WEIGHT = 2.0
"""Of their mean divergence, beside that of the rows: at 1 other prompts changed more than they should with two of four
tasks, at 4 tasks were learned less well in as many steps (docs/real-models-tried.md). Beside DPO it does as well, where
there are no rows (docs/preference.md)."""


@dataclass(frozen=True)
class Anchors:
    """A cycle over anchors.

    Attributes:
        documents: [n] prompts with the reference's answers; at least one.
        candidates: of each document, [A, C] ids of what the reference might have said in place of its A answer tokens.
        log_probabilities: [A, C] the reference's, of each document.
        per_step: rows of each optimiser step.
    """

    documents: Sequence[Document]
    candidates: Sequence[Tensor]
    log_probabilities: Sequence[Tensor]
    per_step: int

    @classmethod
    def of(cls, asked: Asked, per_step: int) -> Anchors:
        """All answers that were given.

        Also those at which the reference does not do what it should: leaving them out changed no rate that was
        measured (docs/real-models-tried.md).
        """
        lengths = [len(answer) for answer in asked.answers()]
        candidates, values = asked.candidates.long().split(lengths), asked.log_probabilities.split(lengths)
        return cls(asked.documents, candidates, values, per_step)

    def rows(self, turn: int) -> list[int]:
        """Which anchors join the step of this turn: number `turn * per_step` and on."""
        first = turn * self.per_step
        return [i % len(self.documents) for i in range(first, first + self.per_step)]

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """These rows, padded: `input_ids`, `attention_mask` and `labels`, on the host."""
        return collate([self.documents[i] for i in rows])

    def tokens(self, rows: Sequence[int]) -> int:
        """Answer tokens in these rows."""
        return sum(len(self.candidates[i]) for i in rows)

    def reference(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Of the N answer tokens of these rows: [N] index in the answer, [N, C] candidates and log-probabilities."""
        position = torch.cat([torch.arange(len(self.candidates[i])) for i in rows])
        candidates, values = (torch.cat([of[i] for i in rows]) for of in (self.candidates, self.log_probabilities))
        return position, candidates, values
