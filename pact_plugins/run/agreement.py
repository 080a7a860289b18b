"""Whether the reference is what the model says on batches as its trainer makes them, seen before the first step.

The reference is computed sequence by sequence, in batches of PACT's own. Training sees what the trainer's sampler and
collator make of them, through whatever the trainer does to a batch on its way to the model. Before the first step, both
must give the same log-probabilities. Where they do not, a mask, positions, packing or other inputs change what an
answer depends on, and the run would be constrained to something that its model never said.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pact_plugins.chat.answers import AnswerTokens, Document, on_host, split_documents
from pact_plugins.errors import PactError
from pact_plugins.method.objective import PactObjective
from pact_plugins.model.forward import autocast_dtype
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage.cache import log_probabilities

TOLERANCE = 0.02
"""Largest accepted difference of a sequence: mean over its answer tokens and S of |log p - log p of the reference|.

Stored as float16, a log-probability of size 16 is off by 0.004 at most.
"""
HALF_TOLERANCE = 0.5
"""The same where the model computes in half precision, in which padding and packing change the rounding.

Seen in bfloat16: up to 0.19 of sequences with few answer tokens (SmolLM2-135M-Instruct).
"""


@dataclass(frozen=True)
class Agreement:
    """How far the reference was from the model on the trainer's own batches; of the first process.

    Attributes:
        batches, sequences, answer_tokens: what was looked at.
        difference: the largest of a sequence, in nats (see `TOLERANCE`).
        seconds: what it took.
    """

    batches: int
    sequences: int
    answer_tokens: int
    difference: float
    seconds: float

    def rows(self, startup: float) -> list[tuple[str, str]]:
        """For a table; `startup`: seconds of everything that PACT does before the first step."""
        seen = f"{self.batches} batches of the trainer, {self.sequences} sequences"
        cost = f"{self.seconds:.1f} s, {self.seconds / startup:.0%} of the start-up"
        return [("reference against model", f"{seen}: off by at most {self.difference:.4f} nats a token ({cost})")]


def check_agreement(
    trainer: Any,
    objective: PactObjective,
    compute_loss: Callable[..., Any],
    batches: Sequence[dict[str, Any]],
    documents: Iterable[Document],
) -> Agreement:
    """Compares the reference with the model, through the trainer's own loss.

    Args:
        trainer: about to begin training, with untrained weights.
        compute_loss: the trainer's own, without PACT.
        batches: its first ones (`first_batches`): each process looks at its own.
        documents: the training set, in which the row of a wrong sequence is looked for.

    Raises:
        PactError: they differ beyond rounding, or a sequence has no reference.
    """
    started = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model)
    sequences, answer_tokens, largest = 0, 0, 0.0
    for inputs in batches:
        tokens = AnswerTokens.of(split_documents(on_host(inputs)), objective.chat)
        differences, tolerance = _differences(trainer, model, objective, compute_loss, inputs, tokens)
        for document, difference in zip(tokens.documents, differences, strict=True):
            if not difference <= tolerance:
                raise _disagrees(document, float(difference), tolerance, documents)
        sequences, answer_tokens = sequences + len(tokens.documents), answer_tokens + len(tokens)
        largest = max(largest, *differences.tolist(), 0.0)
    return Agreement(len(batches), sequences, answer_tokens, largest, time.perf_counter() - started)


def _differences(
    trainer: Any,
    model: Any,
    objective: PactObjective,
    compute_loss: Callable[..., Any],
    inputs: dict[str, Any],
    tokens: AnswerTokens,
) -> tuple[npt.NDArray[np.float64], float]:
    """[D] difference of each document of a batch, and the largest that is rounding."""
    targets = objective.targets(inputs, damps=False)
    request = replace(targets.request, normalise=True)
    with trainer.accelerator.autocast():  # which hosts leave to the model's own forward pass
        tolerance = TOLERANCE if _computes_in(model) in (torch.float32, torch.float64) else HALF_TOLERANCE
    with trainer.compute_loss_context_manager(), objective.head.watch(request) as captures:
        compute_loss(model, {**inputs})  # trainers take keys out
    if not len(tokens):
        return np.empty(0), tolerance
    # TRL runs some losses' passes twice, once for its metrics: without gradients, both are seen here.
    passes = captures or [SubsetHead.one(captures)]  # which refuses none
    own = torch.stack([log_probabilities(capture) for capture in passes])
    of_tokens = (own - targets.full).abs().mean(-1).amax(0).double().cpu().numpy()
    return np.add.reduceat(of_tokens, np.cumsum([0, *tokens.counts[:-1]])) / tokens.counts, tolerance


def _computes_in(model: Any) -> torch.dtype:
    """The coarsest precision of its forward passes, in the caller's autocast context."""
    return autocast_dtype(model) or (torch.float16 if getattr(model, "is_quantized", False) else model.dtype)


def _disagrees(document: Document, difference: float, tolerance: float, documents: Iterable[Document]) -> PactError:
    row = next((d.row for d in documents if d.key == document.key), None)
    return PactError(
        expected="the reference to be what the model says before its first step on the trainer's own batches, up to "
        f"{tolerance:g} nats a token",
        got=f"a mean difference of {difference:.3g} nats in row {row} of the training set",
        consequence="The run would be held to a reference that its model never had: what the model sees of this row "
        "depends on how it is batched.",
        remedy="Use the trainer's own data collator. In packed batches, documents must not see one another: leave out "
        "`attention_mask`, or use an attention implementation that separates them.",
    )
