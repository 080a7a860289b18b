"""Whether the reference is what the model says on batches as its trainer makes them, seen before the first step.

The reference is computed sequence by sequence, in batches of PACT's own. Training sees what the trainer's sampler and
collator make of them, through whatever the trainer does to a batch on its way to the model. Before the first step, both
must give the same log-probabilities. Where they do not, a mask, positions, packing or other inputs change what an
answer depends on, and the run would be constrained to something that its model never said.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from pact_plugins.chat.answers import AnswerTokens, Document, on_host, split_documents
from pact_plugins.errors import PactError
from pact_plugins.method.objective import PactObjective
from pact_plugins.model.forward import autocast_dtype, evaluating
from pact_plugins.model.ranks import Ranks
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage.cache import log_probabilities

BATCHES, TOKENS = 4, 2048
"""Micro-batches that are looked at, of each process: at most so many, and no more once they hold so many tokens."""

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
    documents: Iterable[Document],
    ranks: Ranks,
) -> Agreement:
    """Compares the reference with the model, through the trainer's own loss in eval mode; draws no random number.

    Args:
        trainer: about to begin training, with untrained weights.
        objective: of the prepared run.
        compute_loss: the trainer's own, without PACT.
        documents: the training set, in which the row of a wrong sequence is looked for.
        ranks: of the run. Each looks at batches of its own.

    Raises:
        PactError: they differ beyond rounding, or a sequence has no reference.
    """
    started = time.perf_counter()
    model = trainer.accelerator.unwrap_model(trainer.model)
    sequences, answer_tokens, largest = 0, 0, 0.0
    loader = trainer.callback_handler.train_dataloader
    if loader is None:
        loader = trainer.get_train_dataloader()
    with _as_it_was(trainer, loader), evaluating(model):
        own = _first(_batches(loader))
        batches = min(ranks.exchange(len(own), "comparing the reference with the model"))
        for inputs in map(trainer._prepare_inputs, own[:batches]):
            tokens = AnswerTokens.of(split_documents(on_host(inputs)), objective.chat)
            differences, tolerance = _differences(trainer, model, objective, compute_loss, inputs, tokens)
            for document, difference in zip(tokens.documents, differences, strict=True):
                if not difference <= tolerance:
                    raise _disagrees(document, float(difference), tolerance, documents)
            sequences, answer_tokens = sequences + len(tokens.documents), answer_tokens + len(tokens)
            largest = max(largest, *differences.tolist(), 0.0)
    return Agreement(batches, sequences, answer_tokens, largest, time.perf_counter() - started)


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
        compute_loss(model, inputs)
    if not len(tokens):
        return np.empty(0), tolerance
    own = log_probabilities(SubsetHead.one(captures))
    of_tokens = (own - targets.full).abs().mean(-1).double().cpu().numpy()
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


def _first(batches: Iterator[Any]) -> list[Any]:
    """As many of them as are looked at."""
    taken: list[Any] = []
    while len(taken) < BATCHES and sum(b["input_ids"].numel() for b in taken) < TOKENS:
        if (batch := next(batches, None)) is None:
            break
        taken.append(batch)
    return taken


def _batches(loader: Any) -> Iterator[Any]:
    """What `loader` gives, made in this process; the loader itself is not iterated, since it keeps count."""
    if not isinstance(loader, DataLoader):
        return iter(loader)
    if loader.batch_sampler is None:
        return iter(DataLoader(loader.dataset, None, sampler=loader.sampler, collate_fn=loader.collate_fn))
    return iter(DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn))


@contextmanager
def _as_it_was(trainer: Any, loader: Any) -> Generator[None]:
    """Random numbers, and what TRL notes of a forward pass for its logs, are afterwards as they were before."""
    noted = copy.deepcopy(getattr(trainer, "_metrics", None))
    state, numbers = random.getstate(), np.random.get_state()
    samplers = (getattr(loader, name, None) for name in ("sampler", "batch_sampler"))
    generators = [g for sampler in samplers for g in _generators(sampler)]
    states = [generator.get_state() for generator in generators]
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)
        for generator, before in zip(generators, states, strict=True):
            generator.set_state(before)
        if noted is not None:
            trainer._metrics = noted


def _generators(sampler: Any) -> Iterator[torch.Generator]:
    """Of a sampler, and of those that it wraps."""
    while sampler is not None:
        if isinstance(generator := getattr(sampler, "generator", None), torch.Generator):
            yield generator
        sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)
