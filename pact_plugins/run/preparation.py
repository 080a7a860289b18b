"""What happens before the first step: safety tokens, parity check, reference cache, and a table of what was decided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from pact_plugins.chat.answers import Document
from pact_plugins.chat.fingerprints import digest, keys_fingerprint, tokenizer_fingerprint
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import writes_date
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import harm_probe
from pact_plugins.method.damping import Damping, damping
from pact_plugins.method.finder import Finder
from pact_plugins.method.objective import PactObjective
from pact_plugins.method.reference import open_or_build
from pact_plugins.method.refusal_probe import Probe
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.forward import precision
from pact_plugins.model.parity import check_parity
from pact_plugins.model.progress import tell
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.sharding import full_shape
from pact_plugins.model.subset_head import SubsetHead, hold_head
from pact_plugins.model.support import check_ids, check_lengths
from pact_plugins.run.cost import Data, Overhead, stratified
from pact_plugins.run.coverage import Coverage, located
from pact_plugins.run.evidence import Evidence, tokens_source
from pact_plugins.storage.cache import FORMAT
from pact_plugins.storage.folder import nearest

logger = logging.getLogger(__name__)

SAMPLE = 256
"""Sequences that are kept for looking at the model again when training ends."""


@dataclass(frozen=True)
class Preparation:
    """A prepared objective and what preparing it took.

    Attributes:
        objective: ready for training.
        identity: what the reference cache was made for.
        built: whether the cache was built now rather than found.
        data: how much there is to constrain. Sequences without an answer token (cut off before it) train without PACT.
        coverage: how much of what assistants say in it is constrained.
        damping: whose cross-entropy is left out, or None if nobody's is.
        probe: the drift probe, or None when it is off.
        sample: at most `SAMPLE` sequences with an answer, of all lengths.
        anchors: name of the file of the anchors; None if they are off.
        continued: evidence of the run that is being resumed.
    """

    objective: PactObjective
    identity: dict[str, Any]
    built: bool
    data: Data
    coverage: Coverage
    damping: Damping | None
    probe: Probe | None
    sample: list[Document]
    anchors: str | None
    continued: Evidence | None = None


def prepare(
    model: nn.Module,
    tokenizer: Any,
    documents: Sequence[Document],
    config: PactConfig,
    *,
    template: str | None = None,
    resumed_from: Path | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    show_progress: bool = True,
    ranks: Ranks = ALONE,
) -> Preparation:
    """Readies PACT for `model` as it is now, which becomes the reference.

    Args:
        model: the model before its first step, adapter included; unwrapped of any engine.
        tokenizer: its tokenizer, with its chat template.
        documents: all training sequences.
        config: the run's settings.
        template: that the data was rendered with, if it is not the tokenizer's own.
        resumed_from: folder of a run that is being continued. Its weights are no reference any more: the cache and the
            tokens of that run are used, and nothing is computed from the model.
        autocast: makes the context in which the trainer runs its forward passes.
        show_progress: whether to draw progress bars.
        ranks: of the run, each with the same model and documents.

    Raises:
        PactError: the model, tokenizer, tokens, data or cache cannot be served.
    """
    chat, answered, data, coverage = find_answers(documents, tokenizer, config, template)
    check_ids(model, (d.input_ids for d in documents), "the training set")
    check_lengths(model, [len(d.input_ids) for d in documents])
    probe = Probe(tokenizer, config.active_probe) if config.active_probe else None
    if probe is not None:
        check_ids(model, (d.input_ids for d in probe.documents), "a prompt of the probe")
    run = ranks.first(lambda: Evidence.load(resumed_from), "resuming") if resumed_from else None
    hold_head(model)  # the subset head does so too, after the forward passes that find its tokens
    with autocast():
        fingerprint = run.identity["model"] if run else model_fingerprint(model)
        finder = Finder(config, model, tokenizer, fingerprint, show_progress=show_progress, ranks=ranks)
        tokens = run.tokens if run else finder.tokens()
        if config.safety_tokens == "auto" and not run:
            tokens.require_refusals()
        head = SubsetHead(model, list(tokens.ids))
        tokens.check(tokenizer, full_shape(head.base.get_output_embeddings().weight)[0])
        check_parity(head)
        # A resumed run without them keeps none; `Evidence.cache` compares that with the settings.
        anchors = None if run and run.anchors is None else finder.anchors(run.anchors if run else None)
        name = finder.answers_file.name if anchors and not run else run and run.anchors
        identity = cache_identity(config, model, fingerprint, tokenizer, tokens, chat, answered)
        ranks.agree(identity, "what the reference is made for")
        known = harm_probe.prompts(config.prompts) if config.damps else None
        told: dict[str, Any] = {"ranks": ranks, "show_progress": show_progress}
        if run:
            cache, built = run.cache(config, identity, dated=writes_date(tokenizer)), False
        else:
            cache, built = open_or_build(
                config.cache_folder,
                identity,
                answered,
                head,
                chat,
                probe=partial(harm_probe.learn, head, tokenizer, known, answered, chat, **told) if known else None,
                **told,
            )
    objective = PactObjective(config, tokens, chat, head, cache, anchors)
    damped = damping(objective, answered, partial(tokenizer.decode, skip_special_tokens=True))
    if damped is not None:
        damped.warn()
    sample = [answered[i] for i in stratified([len(d.input_ids) for d in answered], SAMPLE)]
    return Preparation(objective, identity, built, data, coverage, damped, probe, sample, name, run)


class Found(NamedTuple):
    """What a training set holds.

    Attributes:
        chat: what its chat template puts around turns.
        answered: the documents that have an answer token.
        data: how much all of them hold.
        coverage: how much of what assistants say in them is constrained.
    """

    chat: ChatFormat
    answered: list[Document]
    data: Data
    coverage: Coverage


def find_answers(
    documents: Sequence[Document], tokenizer: Any, config: PactConfig, template: str | None = None
) -> Found:
    """Locates the answers of a training set, which was rendered with `template` or the tokenizer's own.

    Raises:
        PactError: there is no answer token, too few supervised assistant tokens are in an answer that was located, or
            the chat template has no header that the settings need.
    """
    chat = ChatFormat.from_tokenizer(tokenizer, config.answer_prefix, template)
    if config.active_gate is not None:
        chat.require_header("build the reference without the prompt, which the gate needs (`pact.gate`)")
    chat, coverage, counts, several = located(documents, chat, tokenizer.decode)
    for note in (*chat.notes, *(chat.history if several else ())):
        logger.warning("PACT: the chat template %s.", note)
    answered = [d for d, count in zip(documents, counts, strict=True) if count]
    if not answered:
        raise PactError(
            expected="a training set with at least one answer token: supervised, and in an assistant turn",
            got=f"none in {len(documents):,} supervised sequences",
            consequence="The run would train without PACT, or train on nothing.",
            remedy="Check the chat template, and that `max_length`/`sequence_len` does not cut the answers off.",
        )
    coverage.require(config.min_coverage)
    return Found(chat, answered, Data.of(documents, counts), coverage)


def cache_identity(
    config: PactConfig,
    model: nn.Module,
    model_identity: str,
    tokenizer: Any,
    tokens: SafetyTokens,
    chat: ChatFormat,
    documents: Sequence[Document],
) -> dict[str, Any]:
    """What a reference cache must have been made for; to be called in the trainer's autocast context."""
    return {
        "format": FORMAT,
        "model": model_identity,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "safety_tokens": digest(tokens.ids),
        "views": views(config),
        "reach": config.gate_reach,
        "harm": harm_probe.identity(harm_probe.prompts(config.prompts)) if config.damps else None,
        "chat": chat.fingerprint(),
        "precision": precision(model),
        "data": keys_fingerprint(d.key for d in documents),
    }


def views(config: PactConfig) -> list[str]:
    """What the cache holds: the reference with its full context and without the prompt, and how harmful prompts are."""
    return ["full", *(["answer_only"] if config.active_gate else []), *(["harm"] if config.damps else [])]


def _damped(damping: Damping | None) -> dict[str, Any]:
    if damping is None:
        return {"damped_share": 0.0}
    return {
        "damped_share": damping.share,
        "damped_answers": damping.damped,
        "looked_at_answers": damping.answers,
        "strongest_damped_rows": [row for row, *_ in damping.strongest],
    }


def evidence_of(preparation: Preparation, **about: Any) -> Evidence:
    """The evidence of a run that is about to begin or to go on: what it is held to, and what to tell people `about` it.

    The parts that it has already are those of the run that is being resumed.
    """
    objective, cache, run = preparation.objective, preparation.objective.cache, preparation.continued
    facts = {
        "began": run.about.get("began") if run else str(date.today()),
        "settings": objective.config.resolved(),
        "data": {
            **asdict(preparation.data),
            "coverage": preparation.coverage.as_dict(),
            **_damped(preparation.damping),
            "anchors": len(objective.anchors.documents) if objective.anchors else 0,
        },
        "reference": {
            "folder": str(cache.folder),
            "bytes": cache.size,
            "built": preparation.built,
            **{key: cache.manifest[key] for key in ("documents", "answer_tokens", "seconds")},
        },
    }
    return Evidence(
        preparation.identity,
        tokens_source(objective.config),
        objective.tokens,
        {**facts, **about},
        parts=run.parts if run else (),
        weights=run.weights if run else {},
        anchors=preparation.anchors,
    )


def print_summary(
    preparation: Preparation,
    console: Console | None = None,
    *,
    overhead: Overhead | None = None,
    checked: Sequence[tuple[str, str]] = (),
) -> None:
    """A short table of what PACT will do in this run.

    Args:
        preparation: of the run.
        console: where it is printed.
        overhead: what a step costs, the log-normaliser counted as computed by PACT.
        checked: further rows, on how the reference was checked.
    """
    objective = preparation.objective
    config, tokens = objective.config, objective.tokens
    strongest = escape(", ".join(repr(text) for text in tokens.texts[:5]))
    table = Table(title="PACT", title_justify="left", show_header=False)
    table.add_row("objective", f"{config.objective}, weight {config.weight:g}")
    table.add_row("conflict", "damp" if config.damps else "keep")
    anchors = objective.anchors
    rows = f"{anchors.per_step} rows beside each step, of {len(anchors.documents)}" if anchors else "off"
    table.add_row("anchors", rows)
    table.add_row("gate", "on" if config.active_gate else "off")
    if (probe := config.active_probe) is not None:
        table.add_row("probe", f"{probe.prompts} held-out prompts of each kind every {probe.every:,} steps")
    table.add_row("safety tokens", f"{len(tokens.ids)}, {len(tokens.positive)} of them held: {strongest}, ...")
    for doubt in tokens.doubts:
        table.add_row("warning", escape(doubt))
    data = preparation.data
    table.add_row("answer tokens", f"{data.answer_tokens:,} in {data.distinct:,} distinct sequences")
    for name, words in preparation.coverage.rows():
        table.add_row(name, escape(words))
    if preparation.damping is not None:
        table.add_row("damped", escape(str(preparation.damping)))
    if data.unanswered:
        table.add_row("without an answer", f"{data.unanswered:,} of {data.sequences:,} sequences: not constrained")
    seconds = objective.cache.manifest["seconds"]
    state = f"computed in {seconds:.1f} s{_why_not_found(preparation)}" if preparation.built else "found"
    reference = f"{objective.cache.size / 2**20:.1f} MiB, {state}: {objective.cache.folder}"
    table.add_row("reference", escape(reference))
    for name, words in checked:
        table.add_row(name, words)
    if overhead is not None:
        parts = f"anchors {overhead.anchors:.1%}, safety tokens' logits {overhead.subset_head:.2%}"
        if overhead.log_normaliser:
            parts += f", and {overhead.log_normaliser:.1%} with some losses, such as Liger's (see `pact estimate`)"
        if overhead.probe:
            parts += f", the probe {overhead.probe:.2%} on average"
        table.add_row("expected cost", f"of a step's FLOP: {parts}")
    tell(table, console)


def _why_not_found(preparation: Preparation) -> str:
    """What set the reference apart from those that lay there, if any of them is of this model."""
    found = nearest(preparation.objective.cache.folder.parent, preparation.identity)
    if found is None:
        return ""
    path, differing = found
    return f" (the cache {path.name[:8]}... of this model differs in `{'`, `'.join(differing)}`)"
