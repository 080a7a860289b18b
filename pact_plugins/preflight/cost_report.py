"""The estimate of a run's cost: its figures, and a table that says of each how it came about."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from pact_plugins.run.cost import Data, ModelSize, Overhead, Step

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


def show(e: Estimate, console: Console | None = None) -> None:
    """A table of the estimate, which says of each figure how it came about."""
    data, step, size, share = e.data, e.step, e.model, e.overhead
    table = Table(title="PACT: expected cost", title_justify="left")
    for header in ("", "", "how"):
        table.add_column(header)
    without = f"; {data.unanswered:,} without an answer" if data.unanswered else ""
    table.add_row("training sequences", f"{data.sequences:,}, {data.distinct:,} of them distinct{without}", "counted")
    table.add_row(
        "answer tokens", f"{data.answer_tokens:,} distinct; {data.answer_tokens_per_epoch:,} per epoch", "counted"
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
    answers = f"{data.answer_tokens:,}"
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
            f"{e.build_seconds:,.1f} s for {e.build_tokens:,} tokens, {e.rows_to_build:,} of {data.distinct:,} rows",
            f"measured on {e.sampled_sequences} sequences, {e.sampled_tokens:,} tokens",
        )
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
