"""What happens before the first step: safety tokens, parity check, reference cache, and a table of what was decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.chat.answers import Document
from pact_plugins.chat.fingerprints import keys_fingerprint
from pact_plugins.chat.template import writes_date
from pact_plugins.method import harm_probe
from pact_plugins.method.damping import Damping, damping
from pact_plugins.method.live import LiveReference
from pact_plugins.method.objective import PactObjective
from pact_plugins.method.reference import Computed, open_or_build
from pact_plugins.method.refusal_probe import Probe
from pact_plugins.model.adapter import taken_off
from pact_plugins.model.parity import check_taken_off
from pact_plugins.model.progress import tell
from pact_plugins.run.cost import Data, Overhead, stratified
from pact_plugins.run.coverage import Coverage
from pact_plugins.run.evidence import Evidence, tokens_source
from pact_plugins.run.examination import examine
from pact_plugins.run.trainer import Start
from pact_plugins.storage.identity import Identity

SAMPLE = 256
"""Sequences that are kept for looking at the model again when training ends."""


@dataclass(frozen=True)
class Preparation:
    """A prepared objective and what preparing it took.

    Attributes:
        objective: ready for training.
        identity: what the reference was computed with.
        rows: fingerprint of the rows that have one.
        values: fingerprints of their values, on each disk; none where the data set streams.
        computed: what of them was computed now rather than found; None where the data set streams, and the reference is
            computed in each step. What is said of the rows is of the first ones then.
        data: how much there is to constrain. Sequences without an answer token (cut off before it) train without PACT.
        coverage: how much of what assistants say in it is constrained.
        damping: whose cross-entropy is left out, or None if nobody's is.
        probe: the drift probe, or None when it is off.
        sample: at most `SAMPLE` sequences with an answer, of all lengths.
        anchors: name of the file of the anchors; None if they are off.
        continued: evidence of the run that is being resumed.
    """

    objective: PactObjective
    identity: Identity
    rows: str
    values: tuple[str, ...]
    computed: Computed | None
    data: Data
    coverage: Coverage
    damping: Damping | None
    probe: Probe | None
    sample: list[Document]
    anchors: str | None
    continued: Evidence | None = None


def prepare(start: Start) -> Preparation:
    """Readies PACT for a model as it is now, which becomes the reference.

    Raises:
        PactError: the model, tokenizer, tokens, data or cache cannot be served.
    """
    seen = examine(start)
    chat, answered, data, coverage = seen.found
    config, tokenizer, run, finder = start.config, start.tokenizer, seen.continued, seen.finder
    with start.autocast():
        tokens = seen.tokens or finder.tokens()
        head = seen.head(tokens)
        # A resumed run without them keeps none; `Evidence.cache` compares that with the settings.
        anchors = None if run and run.anchors is None else finder.anchors(run.anchors if run else None)
        name = finder.answers_file.name if anchors and not run else run and run.anchors
        identity, rows = seen.identity(tokens.ids), keys_fingerprint(d.key for d in answered)
        start.ranks.agree({**identity.model_dump(), "data": rows}, "what the reference is made for")
        told: dict[str, Any] = {"ranks": start.ranks, "show_progress": start.show_progress}
        learn = partial(harm_probe.learn, head, tokenizer, seen.harm, answered, chat, **told) if seen.harm else None
        if start.streams:
            check_taken_off(head, trained=run is not None)
            if run:
                run.check_same(config, identity, rows, dated=writes_date(tokenizer))
            with taken_off(start.model):
                probe = learn() if learn else None
            reference, computed, values = LiveReference(head, identity, chat, probe, start.autocast), None, ()
        else:
            if run:
                reference = run.cache(config, identity, rows, dated=writes_date(tokenizer))
                computed = Computed()
            else:
                folder = config.cache_folder
                reference, computed = open_or_build(folder, identity, answered, head, chat, probe=learn, **told)
            own = reference.fingerprint(d.key for d in answered)
            if run:
                run.check_values(own, reference)
            values = tuple(sorted(set(start.ranks.exchange(own, "naming the reference"))))
    objective = PactObjective(config, tokens, chat, head, reference, anchors)
    damped = damping(objective, answered, partial(tokenizer.decode, skip_special_tokens=True))
    if damped is not None:
        damped.warn()
    sample = [answered[i] for i in stratified([len(d.input_ids) for d in answered], SAMPLE)]
    return Preparation(
        objective, identity, rows, values, computed, data, coverage, damped, seen.probe, sample, name, run
    )


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
    objective, reference, run = preparation.objective, preparation.objective.reference, preparation.continued
    computed = preparation.computed
    data: dict[str, Any] = {"anchors": len(objective.anchors.documents) if objective.anchors else 0}
    facts: dict[str, Any] = {
        "began": run.about.get("began") if run else str(date.today()),
        "settings": objective.config.resolved(),
        "data": data,
    }
    if preparation.data.sequences:
        data |= {
            "streams": computed is None,
            **asdict(preparation.data),
            "coverage": preparation.coverage.as_dict(),
            **_damped(preparation.damping),
        }
        facts["reference"] = {
            "folder": reference.where,
            "bytes": reference.size,
            "computed": asdict(computed) if computed else None,
        }
    return Evidence(
        preparation.identity,
        preparation.rows,
        preparation.values,
        tokens_source(objective.config),
        objective.tokens,
        {**facts, **about},
        parts=run.parts if run else (),
        weights=run.weights if run else {},
        anchors=preparation.anchors,
    )


def _of_rows(preparation: Preparation) -> Iterator[tuple[str, str]]:
    """What is held of the data set, for a table."""
    data, computed, reference = preparation.data, preparation.computed, preparation.objective.reference
    if computed is None:
        yield "data set", "streams: what follows is said of its first rows, which were read ahead"
    yield "answer tokens", f"{data.answer_tokens:,} in {data.distinct:,} distinct sequences"
    yield from preparation.coverage.rows()
    if preparation.damping is not None:
        yield "damped", str(preparation.damping)
    if data.unanswered:
        yield "without an answer", f"{data.unanswered:,} of {data.sequences:,} sequences: not constrained"
    state = f"{computed.words(data.distinct)}; {reference.size / 2**20:.1f} MiB in " if computed else ""
    yield "reference", f"{state}{reference.where}"


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
    settings, alone = config.words, not preparation.data.sequences
    if objective.anchors:
        settings["anchors"] += f", of {len(objective.anchors.documents)}"
    if alone:
        settings["conflict"] += ": beside this trainer's loss anchors are held, and no rows"
    for name, words in settings.items():
        table.add_row(name, words)
    if (probe := config.active_probe) is not None:
        table.add_row("probe", f"{probe.prompts} held-out prompts of each kind every {probe.every:,} steps")
    table.add_row("safety tokens", f"{len(tokens.ids)}, {len(tokens.positive)} of them held: {strongest}, ...")
    for doubt in tokens.doubts:
        table.add_row("warning", escape(doubt))
    for name, words in (*(() if alone else _of_rows(preparation)), *checked):
        table.add_row(name, escape(words))
    if overhead is not None:
        parts = f"anchors {overhead.anchors:.1%}, safety tokens' logits {overhead.subset_head:.2%}"
        if overhead.log_normaliser:
            parts += f", and {overhead.log_normaliser:.1%} with some losses, such as Liger's (see `pact estimate`)"
        if overhead.reference:
            parts += f", the reference's own forward pass {overhead.reference:.1%}"
        if overhead.probe:
            parts += f", the probe {overhead.probe:.2%} on average"
        table.add_row("expected cost", f"of a step's FLOP: {parts}")
    tell(table, console)
