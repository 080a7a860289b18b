"""What PACT costs, as formulas over the data, the model and the settings of a run: nothing here runs the model.

Shares of a step are shares of its floating-point operations (FLOP). A weight costs 2 FLOP a token in the forward pass,
2 for the gradient of its input, 2 for its own gradient if it is trained, and 2 more for a second forward pass where
gradient checkpointing asks for one. Attention's own products and padding are left out of a step: both would make PACT's
share smaller.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.method.reference import forward_sequences, value_counts
from pact_plugins.model.forward import batches_by_length
from pact_plugins.model.sharding import full_shape
from pact_plugins.model.support import underlying

BYTES_PER_VALUE = 2
"""A log-probability is stored as float16."""


@dataclass(frozen=True)
class Data:
    """How much there is to constrain.

    Attributes:
        sequences: training sequences of an epoch, duplicates included.
        distinct: different ones among them that have an answer token.
        unanswered: those without an answer token, duplicates included.
        tokens: tokens of an epoch.
        answer_tokens: answer tokens of the distinct sequences: what the reference is computed for.
        answer_tokens_per_epoch: answer tokens of an epoch: what the loss is computed for.
    """

    sequences: int
    distinct: int
    unanswered: int
    tokens: int
    answer_tokens: int
    answer_tokens_per_epoch: int

    @classmethod
    def of(cls, documents: Sequence[Document], answer_tokens: Sequence[int]) -> Data:
        """Counts `documents`, which have `answer_tokens` each."""
        often = Counter(d.key for d in documents)
        each = {d.key: n for d, n in zip(documents, answer_tokens, strict=True) if n}
        return cls(
            sequences=len(documents),
            distinct=len(each),
            unanswered=sum(n == 0 for n in answer_tokens),
            tokens=sum(len(d.input_ids) for d in documents),
            answer_tokens=sum(each.values()),
            answer_tokens_per_epoch=sum(n * often[key] for key, n in each.items()),
        )


def count_reached_tokens(document: Document, chat: ChatFormat, reach: int) -> int:
    """Answer tokens of one sequence among the first `reach` of their answer: those of the view without the prompt."""
    return int((AnswerTokens.of([document], chat).position < reach).sum()) if reach else 0


def cache_bytes(answer_tokens: int, reached_tokens: int, safety_tokens: int) -> int:
    """Bytes of the cached values: (answer tokens + those that the gate reaches) * |S| * 2.

    The index adds a few dozen bytes a sequence.
    """
    return (answer_tokens + reached_tokens) * safety_tokens * BYTES_PER_VALUE


def forward_lengths(
    documents: Sequence[Document], chat: ChatFormat, reach: int, prompts: Sequence[Document] = ()
) -> list[int]:
    """Lengths of the sequences that go through the model to compute the reference of `documents`.

    With the full context, one for each document, up to its last answer token; without the prompt, the header and the
    first `reach` tokens of each answer, equal ones once; of `prompts`, which lack their harm alone, up to the last
    answer.
    """
    tokens = [AnswerTokens.of([d], chat) for d in (*documents, *prompts)]
    counts, whole = value_counts(tokens, reach), np.arange(len(tokens)) < len(documents)
    wanted = {"full": counts["full"] * whole, "harm": counts["harm"] * ~whole}
    if reach:
        wanted["answer_only"] = counts["answer_only"] * whole
    return [len(s.input_ids) for s in forward_sequences(tokens, wanted, reach, chat)]


def padded_tokens(lengths: Sequence[int]) -> int:
    """Tokens that go through the model for sequences of these lengths, batched by length, padding included."""
    return sum(len(batch) * lengths[batch[0]] for batch in batches_by_length(lengths))


def stratified(lengths: Sequence[int], size: int) -> list[int]:
    """Indices of `size` sequences, or all: the middle one of each of `size` equally large groups of similar length."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    size = min(size, len(order))
    return [order[int((k + 0.5) * len(order) / size)] for k in range(size)]


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides the FLOP of a step.

    Attributes:
        parameters: P, weights that every token is multiplied with: all but an input embedding of its own. Of a mixture
            of experts all are counted, though a token meets few: there PACT's share is larger than computed here.
        trained: those of them that are trained.
        hidden: H, width of the hidden state.
        vocabulary: V, rows of the head.
        head_trained: whether the head is trained.
        checkpointing: whether the forward pass is run a second time (gradient checkpointing).
    """

    parameters: int
    trained: int
    hidden: int
    vocabulary: int
    head_trained: bool
    checkpointing: bool

    @classmethod
    def of(cls, model: nn.Module) -> ModelSize:
        """Sizes of a supported model, adapter included (see `support.check_supported`)."""
        base = underlying(model)
        head = base.get_output_embeddings().weight
        embedding = base.get_input_embeddings().weight
        multiplied = [p for p in model.parameters() if p is head or p is not embedding]
        vocabulary, hidden = full_shape(head)
        # The newer of two names of the same property.
        names = [n for n in ("is_activation_checkpointing", "is_gradient_checkpointing") if hasattr(type(base), n)]
        return cls(
            parameters=sum(map(_elements, multiplied)),
            trained=sum(_elements(p) for p in multiplied if p.requires_grad),
            hidden=hidden,
            vocabulary=vocabulary,
            head_trained=head.requires_grad,
            checkpointing=bool(names and getattr(base, names[0])),
        )

    def step_flop(self, tokens: float) -> float:
        """tokens * (4 P + 2 * trained + 2 (P - V H) if checkpointing).

        About 6 P when everything is trained, 8 P with checkpointing; 4 P and 6 P under LoRA.
        """
        again = self.parameters - self.vocabulary * self.hidden if self.checkpointing else 0
        return tokens * (4 * self.parameters + 2 * self.trained + 2 * again)

    def forward_flop(self, tokens: float, at_the_head: float) -> float:
        """2 (P - V H) * tokens + 2 V H * at_the_head: without gradients, the head at some of the tokens alone."""
        head = self.vocabulary * self.hidden
        return 2 * ((self.parameters - head) * tokens + head * at_the_head)

    def subset_head_flop(self, answer_tokens: float, safety_tokens: int) -> float:
        """(4 + 2 if the head is trained) * N * |S| * H."""
        return (4 + 2 * self.head_trained) * answer_tokens * safety_tokens * self.hidden

    def log_normaliser_flop(self, answer_tokens: float) -> float:
        """(6 + 2 if the head is trained) * N * V * H: in chunks, which the backward pass computes again."""
        return (6 + 2 * self.head_trained) * answer_tokens * self.vocabulary * self.hidden


def _elements(parameter: Any) -> int:
    # bitsandbytes packs two 4-bit weights into one element.
    state = getattr(parameter, "quant_state", None)
    return math.prod(full_shape(parameter) if state is None else state.shape)


@dataclass(frozen=True)
class Step:
    """One optimiser step of one process, averaged over an epoch.

    Attributes:
        tokens, answer_tokens: of the training rows.
        anchor_tokens, anchor_answer_tokens: of the anchors that join it.
        reference_tokens: that go through the model once more, of a reference that is computed in each step.
    """

    tokens: float
    answer_tokens: float
    anchor_tokens: float
    anchor_answer_tokens: float
    reference_tokens: float = 0.0

    @classmethod
    def of(
        cls,
        data: Data,
        steps_per_epoch: float,
        anchors: Sequence[Document],
        anchors_per_step: int,
        reference_tokens: float = 0.0,
    ) -> Step:
        """The average step.

        Args:
            steps_per_epoch: steps of all processes together, in which an epoch is used up.
            anchors: all of them, in turn; may be empty.
            reference_tokens: of an epoch, where the reference is computed in each step.
        """
        lengths = [(len(d.input_ids), int(d.supervised.sum())) for d in anchors] or [(0, 0)]
        anchor, answer = np.mean(lengths, axis=0) * anchors_per_step
        return cls(
            tokens=data.tokens / steps_per_epoch,
            answer_tokens=data.answer_tokens_per_epoch / steps_per_epoch,
            anchor_tokens=float(anchor),
            anchor_answer_tokens=float(answer),
            reference_tokens=reference_tokens / steps_per_epoch,
        )


@dataclass(frozen=True)
class Overhead:
    """What PACT adds to a step, as shares of the step's own FLOP.

    Attributes:
        anchors: their tokens over the step's: they go forward and backward like training rows.
        subset_head: logits of the safety tokens.
        log_normaliser: logsumexp over the vocabulary, where the host's own loss does not give it.
        probe: the forward passes of one measurement, spread over the steps until the next one.
        reference: one more forward pass over the step's rows, where it is computed in each step.
    """

    anchors: float
    subset_head: float
    log_normaliser: float
    probe: float = 0.0
    reference: float = 0.0

    @classmethod
    def of(
        cls, step: Step, model: ModelSize, safety_tokens: int, *, log_normaliser: bool, probe_flop: float = 0.0
    ) -> Overhead:
        """The shares.

        Args:
            log_normaliser: whether PACT computes it itself.
            probe_flop: of the drift probe, for each step of one process.
        """
        own = model.step_flop(step.tokens)
        constrained = step.answer_tokens + step.anchor_answer_tokens
        return cls(
            anchors=step.anchor_tokens / step.tokens,
            subset_head=model.subset_head_flop(constrained, safety_tokens) / own,
            log_normaliser=model.log_normaliser_flop(step.answer_tokens) / own if log_normaliser else 0.0,
            probe=probe_flop / own,
            reference=model.forward_flop(step.reference_tokens, step.answer_tokens) / own
            if step.reference_tokens
            else 0.0,
        )

    @property
    def total(self) -> float:
        """All of it."""
        return self.anchors + self.subset_head + self.log_normaliser + self.probe + self.reference
