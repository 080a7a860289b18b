"""What PACT will cost in a run, found out on its own data and model when it would begin to train, and a table of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pact_plugins.chat.answers import AnswerTokens, Document, on_host, split_documents
from pact_plugins.chat.format import ChatFormat
from pact_plugins.config import PactConfig
from pact_plugins.method.reference import open_or_build
from pact_plugins.model.forward import to_device
from pact_plugins.model.parity import check_taken_off
from pact_plugins.model.ranks import ALONE
from pact_plugins.model.subset_head import Request, SubsetHead
from pact_plugins.run.cost import (
    Data,
    ModelSize,
    Overhead,
    Step,
    cache_bytes,
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

LogNormaliser = Literal["not needed", "read off the host's loss", "computed in chunks"]


@dataclass(frozen=True)
class Estimate:
    """What PACT will cost in a run.

    Attributes:
        data: how much there is to constrain; counted.
        optimiser_steps: of the whole run, as the host computes them.
        safety_tokens: |S|; an upper bound (`pact.top_k`) unless `safety_tokens_known`.
        reached_tokens: answer tokens of the data that the cache holds without the prompt too, for the gate.
        anchors: rows that join each step.
        anchor_answer_tokens: answer tokens of all anchors; an upper bound unless `anchors_known`.
        streams: whether the data set does: what is counted is of its first rows, and nothing is cached.
        cache_bytes: of the cached values; computed.
        cache: folder of the cache in which the run will find all rows; None if it has to compute any.
        rows_to_build: distinct sequences that it will compute; the others are found.
        build_tokens: tokens that go through the model to build the cache, padding included; computed.
        build_seconds: measured on a sample and scaled by tokens; 0 if the cache is there. Finding the safety tokens and
            writing the anchors, once for each model, come on top unless they are known.
        sampled_sequences, sampled_tokens: what the time was measured on.
        step: the average optimiser step; counted.
        model: what of the model decides the FLOP of a step.
        overhead: shares of the step's FLOP; reasoned.
        log_normaliser: where it comes from; seen in one forward pass of the host's own loss.
        probe_tokens: tokens of one measurement of the drift probe, all processes together; 0 when it is off.
        probe_every: steps between its measurements; 0 when it is off.
    """

    data: Data
    optimiser_steps: int
    safety_tokens: int
    safety_tokens_known: bool
    reached_tokens: int
    anchors: int
    anchor_answer_tokens: int
    anchors_known: bool
    streams: bool
    cache_bytes: int
    cache: str | None
    rows_to_build: int
    build_tokens: int
    build_seconds: float
    sampled_sequences: int
    sampled_tokens: int
    step: Step
    model: ModelSize
    overhead: Overhead
    log_normaliser: LogNormaliser
    probe_tokens: int
    probe_every: int

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        content = asdict(self)
        content["overhead"]["total"] = self.overhead.total
        return content


def estimate(trainer: Any, config: PactConfig) -> Estimate:
    """What PACT will cost in the run that `trainer` is about to begin.

    Runs the model on a sample of the sequences, and one forward pass of the trainer's own loss. Writes nothing that
    stays.

    Raises:
        PactError: PACT cannot serve the run.
    """
    seen = examine(start := Start.of(trainer, config))
    chat, answered, data, _ = seen.found
    tokens, probe, reach = seen.tokens, seen.probe, config.gate_reach
    with trainer.accelerator.autocast():
        head = seen.head(tokens)
        anchors, anchors_known = seen.finder.expected_anchors()
        if start.streams:
            check_taken_off(head, trained=False)
        referenced = list({d.key: d for d in answered}.values())
        cache = ReferenceCache(config.cache_folder, identity := seen.identity(head.ids.tolist()))
        whole, prompts = referenced, list[Document]()
        if tokens is not None:  # or nobody knows yet what they are
            lacking, *harm = cache.missing([d.key for d in referenced]).tolist()
            whole = [d for d, lacks in zip(referenced, lacking, strict=True) if lacks]
            prompts = [d for d, lacks, *more in zip(referenced, lacking, *harm, strict=True) if not lacks and any(more)]
        build_tokens, sampled, sampled_tokens, seconds = 0, 0, 0, 0.0
        if (whole or prompts) and not start.streams:
            build_tokens = padded_tokens(forward_lengths(whole, chat, reach, prompts))
            sampled, sampled_tokens, taken = _built_sample(head, chat, whole or prompts, identity.stores[0])
            seconds = taken / sampled_tokens * build_tokens
    with first_batches(trainer, ALONE) as batches:
        measure_host_loss(trainer, trainer.compute_loss, batches, damps=config.damps)
    log_normaliser = _log_normaliser(trainer, config, head, chat)
    head.remove()
    step = expected_step(trainer, data, start.documents, chat, anchors, config)
    assert step is not None, "a trainer that begins to train has a data loader"
    size = ModelSize.of(start.model)
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
        streams=start.streams,
        cache_bytes=0 if start.streams else cache_bytes(data.answer_tokens, reached_tokens, len(head.ids)),
        cache=None if whole or prompts else str(cache.folder),
        rows_to_build=len(whole),
        build_tokens=build_tokens,
        build_seconds=seconds,
        sampled_sequences=sampled,
        sampled_tokens=sampled_tokens,
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


def _built_sample(
    head: SubsetHead, chat: ChatFormat, documents: Sequence[Document], identity: Identity
) -> tuple[int, int, float]:
    """Sequences, tokens with padding, and seconds of the real build on a sample, the second time that it is run."""
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
    return len(sample), padded_tokens(forward_lengths(sample, chat, identity.reach or 0)), seconds


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


def show(e: Estimate, console: Console | None = None) -> None:
    """A table of the estimate, which says of each figure how it came about."""
    data, step, size, share = e.data, e.step, e.model, e.overhead
    table = Table(title="PACT: expected cost", title_justify="left")
    for header in ("", "", "how"):
        table.add_column(header)
    counted = "counted" + " in the first rows of the stream" * e.streams
    without = f"; {data.unanswered:,} without an answer" if data.unanswered else ""
    table.add_row("training sequences", f"{data.sequences:,}, {data.distinct:,} of them distinct{without}", counted)
    table.add_row(
        "answer tokens", f"{data.answer_tokens:,} distinct; {data.answer_tokens_per_epoch:,} per epoch", counted
    )
    table.add_row("optimiser steps", f"{e.optimiser_steps:,}", "by the host")
    table.add_row(
        "safety tokens", f"{e.safety_tokens}", "known" if e.safety_tokens_known else "not found yet: at most (top_k)"
    )
    if e.anchors:
        table.add_row(
            "anchors",
            f"{e.anchors} rows a step; {e.anchor_answer_tokens:,} answer tokens in all",
            "known" if e.anchors_known else "not written yet: at most",
        )
    if e.streams:
        table.add_row("reference", "computed in each step, by the model with its adapter off", "")
    else:
        _add_cache(table, e)
    table.add_row("each step", f"{share.total:+.2%} FLOP", "reasoned")
    table.add_row("  anchors", f"{share.anchors:.2%} = {step.anchor_tokens:,.0f} / {step.tokens:,.0f} tokens", "")
    own = f"{size.step_flop(1):,.0f} a token x {step.tokens:,.0f}"
    constrained = step.answer_tokens + step.anchor_answer_tokens
    table.add_row(
        "  safety tokens' logits",
        f"{share.subset_head:.2%} = {4 + 2 * size.head_trained} x {constrained:,.0f} x {e.safety_tokens} x "
        f"{size.hidden:,} / ({own})",
        "",
    )
    chunks = (
        f" = {6 + 2 * size.head_trained} x {step.answer_tokens:,.0f} x {size.vocabulary:,} x {size.hidden:,} / ({own})"
    )
    table.add_row(
        "  log-normaliser", f"{share.log_normaliser:.2%}{chunks if share.log_normaliser else ''}", e.log_normaliser
    )
    if e.streams:
        table.add_row("  reference", f"{share.reference:.2%}: {step.reference_tokens:,.0f} tokens, forward alone", "")
    if e.probe_every:
        table.add_row(
            "  probe",
            f"{share.probe:.2%} on average: {e.probe_tokens:,} tokens forward every {e.probe_every:,} steps",
            "",
        )
    (console or Console()).print(table)
    if not (e.safety_tokens_known and e.anchors_known):
        text = "Finding the safety tokens and writing the anchors, once for each model, come on top of the build."
        (console or Console()).print(text)


def _add_cache(table: Table, e: Estimate) -> None:
    answers = f"{e.data.answer_tokens:,}"
    if e.reached_tokens:
        answers = f"({answers} + {e.reached_tokens:,} without the prompt)"
    table.add_row(
        "reference cache",
        f"{e.cache_bytes / 2**20:,.1f} MiB = {answers} answer tokens x {e.safety_tokens} x 2 bytes",
        "computed",
    )
    if e.cache is not None:
        table.add_row("time to build it", f"0 s: it is there, {e.cache}", "found")
    else:
        table.add_row(
            "time to build it",
            f"{e.build_seconds:,.1f} s for {e.build_tokens:,} tokens, {e.rows_to_build:,} of {e.data.distinct:,} rows",
            f"measured on {e.sampled_sequences} sequences, {e.sampled_tokens:,} tokens",
        )
