"""The first batches of a trainer, as it makes them, seen before its first step and without a trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from pact_plugins.model.forward import evaluating
from pact_plugins.model.ranks import Ranks

BATCHES, TOKENS = 4, 2048
"""Micro-batches that are looked at, of each process: at most so many, and no more once they hold so many tokens."""


@contextmanager
def first_batches(trainer: Any, ranks: Ranks) -> Generator[list[dict[str, Any]]]:
    """Micro-batches of a trainer that is about to begin, as its loss takes them; draws no random number.

    Within the block the model is in eval mode and without gradients. Every rank is given as many.
    """
    loader = trainer.callback_handler.train_dataloader
    if loader is None:
        loader = trainer.get_train_dataloader()
    # As the training loop sets it, later: TRL divides what balances experts by it.
    vars(trainer).setdefault("current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
    with _as_it_was(trainer, loader), evaluating(trainer.accelerator.unwrap_model(trainer.model)):
        own = _first(_batches(loader))
        batches = min(ranks.exchange(len(own), "the first batches of the trainer"))
        yield [trainer._prepare_inputs(inputs) for inputs in own[:batches]]


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
    if isinstance(loader.dataset, IterableDataset):  # of which torch makes batches without a sampler
        return iter(DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn))
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
