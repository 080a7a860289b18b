"""Anchors: prompts with the reference's own answers that ride along with every training step.

Harmless training rows show the student no request to refuse, and harmful ones show only how an affirmative answer goes
on. Anchors keep the whole refusal in view, and harmless ones beside them its limits: both enter the divergence alone,
never cross-entropy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.errors import PactError
from pact_plugins.method.refusals import judge
from pact_plugins.model.forward import collate

logger = logging.getLogger(__name__)


def worth_keeping(documents: Sequence[Document], decode: Callable[..., str]) -> list[Document]:
    """Those anchors in which the reference does what it should, as many harmful as harmless, in turn.

    A harmful request that it answers, and a harmless one that it declines, would teach the model its own faults. All of
    them, with a warning, where none of a kind are left.

    Args:
        documents: a harmful prompt with its answer, a harmless one with its own, and so on.
        decode: from token ids to text, without special tokens.
    """
    prompts = [decode(d.input_ids[~d.supervised]) for d in documents]
    verdicts = judge(prompts, [decode(d.input_ids[d.supervised]) for d in documents])
    judged = list(zip(documents, verdicts, strict=True))
    harmful = [d for d, verdict in judged[::2] if verdict in ("refusal", "cannot judge")]
    harmless = [d for d, verdict in judged[1::2] if verdict != "refusal"]
    if not (harmful and harmless):
        logger.warning(
            "PACT: the model %s of the shipped prompts, so its answers to them are kept as they are.",
            "declines none of the harmful" if harmless else "declines all of the harmless",
        )
        return [*documents]
    return [d for pair in zip(harmful, harmless, strict=False) for d in pair]


@dataclass(frozen=True)
class Anchors:
    """A cycle over anchor documents.

    Attributes:
        documents: prompts with the reference's answers, the answers supervised; at least one.
        answer_tokens: of each document; at least one.
        per_step: rows of each optimiser step.
    """

    documents: Sequence[Document]
    answer_tokens: Sequence[int]
    per_step: int

    @classmethod
    def of(cls, documents: Sequence[Document], chat: ChatFormat, per_step: int) -> Anchors:
        """Those documents in which an answer is located: a model may answer with what opens another's turn.

        Raises:
            PactError: there is none.
        """
        counts = [len(AnswerTokens.of([document], chat)) for document in documents]
        kept = [(document, count) for document, count in zip(documents, counts, strict=True) if count]
        if not kept:
            raise PactError(
                expected="anchors in which the chat template of the training data tells where answers begin",
                got=f"none of {len(documents)}",
                consequence="Steps would go on without the anchors that the settings ask for.",
                remedy="Give the tokenizer the chat template that renders the data, or set `pact.anchors: 0`.",
            )
        return cls([document for document, _ in kept], [count for _, count in kept], per_step)

    def batch(self, turn: int) -> dict[str, Tensor]:
        """Rows number `turn * per_step` and on, padded: `input_ids`, `attention_mask` and `labels`, on the host."""
        return collate([self.documents[i] for i in self._rows(turn)])

    def tokens(self, turn: int) -> int:
        """Answer tokens in the rows of this turn."""
        return sum(self.answer_tokens[i] for i in self._rows(turn))

    def _rows(self, turn: int) -> list[int]:
        first = turn * self.per_step
        return [i % len(self.documents) for i in range(first, first + self.per_step)]
