"""What PACT will cost in a run, found out on its own data and model when it would begin to train."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pact_plugins.chat.answers import AnswerTokens, Document, on_host, split_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import PactConfig
from pact_plugins.method.reference import open_or_build
from pact_plugins.model.forward import to_device
from pact_plugins.model.ranks import ALONE
from pact_plugins.model.subset_head import Request, SubsetHead
from pact_plugins.preflight.cost_report import Estimate, LogNormaliser
from pact_plugins.run.cost import (
    ModelSize,
    Overhead,
    cache_bytes,
    count_answer_tokens,
    count_reached_tokens,
    forward_lengths,
    padded_tokens,
    stratified,
)
from pact_plugins.run.examination import examine
from pact_plugins.run.first_batches import first_batches
from pact_plugins.run.host_loss import measure_host_loss
from pact_plugins.run.trainer import Start, expected_step, probe_flop
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.identity import Identity

SAMPLE_TOKENS = 16_384
"""Tokens, roughly, of the sequences on which the time to build the cache is measured."""


def estimate(trainer: Any, config: PactConfig) -> Estimate:
    """What PACT will cost in the run that `trainer` is about to begin.

    Runs the model on a sample of the sequences, and one forward pass of the trainer's own loss. Writes nothing that
    stays.

    Raises:
        PactError: PACT cannot serve the run.
    """
    seen = examine(Start.of(trainer, config))
    chat, answered, data, _ = seen.found
    tokens, probe, reach = seen.tokens, seen.probe, config.gate_reach
    with trainer.accelerator.autocast():
        head = seen.head(tokens)
        anchors, anchors_known = seen.finder.expected_anchors()
        referenced = list({d.key: d for d in answered}.values())
        cache = ReferenceCache(config.cache_folder, identity := seen.identity(head.ids.tolist()))
        whole, prompts = referenced, list[Document]()
        if tokens is not None:  # or nobody knows yet what they are
            lacking, *harm = cache.missing([d.key for d in referenced]).tolist()
            whole = [d for d, lacks in zip(referenced, lacking, strict=True) if lacks]
            prompts = [d for d, lacks, *more in zip(referenced, lacking, *harm, strict=True) if not lacks and any(more)]
        build_tokens, seconds, sample = 0, 0.0, _Sample(0, 0)
        if whole or prompts:
            lengths = forward_lengths(whole, chat, reach, prompts)
            build_tokens = padded_tokens(lengths)
            per_token, sample = _build_speed(head, chat, whole or prompts, identity.stores[0])
            seconds = per_token * build_tokens
    with first_batches(trainer, ALONE) as batches:
        measure_host_loss(trainer, trainer.compute_loss, batches, damps=config.damps)
    log_normaliser = _log_normaliser(trainer, config, head, chat)
    head.remove()
    step = expected_step(trainer, data, anchors, config)
    assert step is not None, "a trainer that begins to train has a data loader"
    size = ModelSize.of(seen.start.model)
    answer_tokens = sum(count_answer_tokens(d, chat) for d in referenced)
    reached_tokens = sum(count_reached_tokens(d, chat, reach) for d in referenced)
    return Estimate(
        data=data,
        optimiser_steps=trainer.state.max_steps,
        safety_tokens=len(head.ids),
        safety_tokens_known=tokens is not None,
        reached_tokens=reached_tokens,
        anchors=config.anchors_per_step,
        anchor_answer_tokens=sum(int(d.supervised.sum()) for d in anchors),
        anchors_known=anchors_known,
        cache_bytes=cache_bytes(answer_tokens, reached_tokens, len(head.ids)),
        cache=None if whole or prompts else str(cache.folder),
        rows_to_build=len(whole),
        build_tokens=build_tokens,
        build_seconds=seconds,
        sampled_sequences=sample.sequences,
        sampled_tokens=sample.tokens,
        step=step,
        model=size,
        overhead=Overhead.of(
            step,
            size,
            len(head.ids),
            log_normaliser=log_normaliser == "computed in chunks",
            probe_flop=probe_flop(trainer, size, probe),
        ),
        log_normaliser=log_normaliser,
        probe_tokens=probe.tokens if probe else 0,
        probe_every=probe.config.every if probe else 0,
    )


@dataclass(frozen=True)
class _Sample:
    sequences: int
    tokens: int


def _build_speed(
    head: SubsetHead, chat: ChatFormat, documents: Sequence[Document], identity: Identity
) -> tuple[float, _Sample]:
    """Seconds a token, padding included, and the sample: the real build on a sample, the second time that it is run."""
    lengths = [len(d.input_ids) for d in documents]
    size = max(8, SAMPLE_TOKENS // max(1, round(float(np.mean(lengths)))))
    sample = [documents[i] for i in stratified(lengths, size)]
    seconds = 0.0
    with tempfile.TemporaryDirectory(prefix="pact-estimate-") as folder:
        for name in ("warm-up", "measured"):
            started = time.perf_counter()
            # To score prompts in the same forward passes costs next to nothing.
            open_or_build(Path(folder) / name, identity, sample, head, chat, show_progress=False)
            seconds = time.perf_counter() - started
    tokens = padded_tokens(forward_lengths(sample, chat, identity.reach or 0))
    return seconds / tokens, _Sample(len(sample), tokens)


def _log_normaliser(trainer: Any, config: PactConfig, head: SubsetHead, chat: ChatFormat) -> LogNormaliser:
    """Where the log-normaliser comes from, seen in one forward pass of the trainer's own loss on its first batch."""
    if not config.defaults.absolute:
        return "not needed"
    inputs = trainer._prepare_inputs(next(iter(trainer.callback_handler.train_dataloader)))
    device = inputs["input_ids"].device
    batch = on_host(inputs)
    tokens = AnswerTokens.of(split_documents(batch), chat)
    flat = to_device(tokens.flat(batch["labels"].shape[1]), device)
    trainer.model_wrapped.train()
    with torch.enable_grad(), head.watch(Request(flat, to_device(tokens.label, device), normalise=True)) as captures:
        trainer.compute_loss(trainer.model_wrapped, inputs)
    return "read off the host's loss" if SubsetHead.one(captures).from_host else "computed in chunks"
