"""Which training rows go along with harmful requests, found out when the run would begin to train."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pact_plugins.chat.answers import Answer, Document
from pact_plugins.config import PactConfig
from pact_plugins.method.damping import by_answer
from pact_plugins.model.progress import progress
from pact_plugins.model.ranks import ALONE
from pact_plugins.run.first_batches import first_batches
from pact_plugins.run.host_loss import measure_host_loss
from pact_plugins.run.preparation import prepare
from pact_plugins.run.trainer import Start
from pact_plugins.storage import files

ROWS = 20
"""Answers in the table; the file of `--out` holds all."""

WIDTH = 48
"""Characters of a prompt's end and of an answer's opening."""


@dataclass(frozen=True)
class ConflictingAnswer:
    """An answer of the training set that goes along with a harmful request.

    Attributes:
        rows: the rows of the host's prepared training set that hold its sequence, from 0; one for each copy.
        answer: number of the answer within its sequence, from 0.
        conflict: m, a probability (`loss.conflict`).
        weight_left: what the run leaves of the weight of its cross-entropy: 0, or 1 if it damps nothing here.
        tokens: number of its tokens.
        first_token: text of its first token.
        prompt: everything before it that the model sees, without special tokens and without the answer's header.
        text: the answer, without special tokens.
    """

    rows: list[int]
    answer: int
    conflict: float
    weight_left: float
    tokens: int
    first_token: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Audit:
    """What an audit found; copies of a sequence count as often as they occur.

    Attributes:
        sequences: training sequences with an answer.
        answers: their answers.
        damps: whether the run damps conflicting answers (`pact.conflict`).
        conflict_threshold: those above which it does.
        threshold: those above which an answer is listed.
        damped_share: share of the cross-entropy's weight, over all supervised tokens, that the run takes away.
        streams: whether the data set does: audited are its first rows.
        cache: where the reference is, which the run finds again.
        listed: the conflicting answers, strongest first; equal sequences once.
    """

    sequences: int
    answers: int
    damps: bool
    conflict_threshold: float
    threshold: float
    damped_share: float
    streams: bool
    cache: str
    listed: list[ConflictingAnswer]

    @property
    def listed_answers(self) -> int:
        """Listed answers, copies included."""
        return sum(len(answer.rows) for answer in self.listed)

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {**asdict(self), "listed_answers": self.listed_answers}

    def save(self, path: Path) -> None:
        """Writes the listed answers, one JSON object a line."""
        files.write_lines(path, map(asdict, self.listed))


def audit(trainer: Any, config: PactConfig, *, threshold: float | None = None) -> Audit:
    """Audits the training set of the run that `trainer` is about to begin, against the model as it is now.

    Finds or builds the tokens and the reference as the run would, which finds them again.

    Args:
        threshold: conflicts above it are listed; None for `config.conflict_threshold`.

    Raises:
        PactError: PACT cannot serve the run.
    """
    # To damp has the harm of prompts computed.
    start = Start.of(trainer, config.model_copy(update={"conflict": "damp"}))
    objective = prepare(start).objective
    with first_batches(trainer, ALONE) as batches:
        measure_host_loss(trainer, trainer.compute_loss, batches, damps=config.damps)
    threshold = config.conflict_threshold if threshold is None else threshold
    copies: dict[bytes, list[Document]] = {}
    for document in start.documents:
        copies.setdefault(document.key, []).append(document)
    sequences, answers, supervised, damped = 0, 0, 0, 0.0
    listed: list[ConflictingAnswer] = []
    found = zip(copies.values(), by_answer(objective, [same[0] for same in copies.values()]), strict=True)
    for same, conflicts in progress(found, "PACT: auditing the training set", len(copies), start.show_progress):
        document, rows = same[0], [one.row for one in same]
        sequences += len(rows) * bool(conflicts)
        answers += len(rows) * len(conflicts)
        supervised += len(rows) * int(document.supervised.sum())
        for number, (answer, conflict) in enumerate(zip(document.answers(objective.chat), conflicts, strict=True)):
            tokens = int(document.supervised[answer.start : answer.stop].sum())
            taken = float(config.damps and conflict > config.conflict_threshold)
            damped += len(rows) * taken * tokens
            if conflict > threshold:
                texts = _texts(start.tokenizer, document, answer)
                listed.append(ConflictingAnswer(rows, number, conflict, 1 - taken, tokens, *texts))
    objective.head.remove()
    return Audit(
        sequences=sequences,
        answers=answers,
        damps=config.damps,
        conflict_threshold=config.conflict_threshold,
        threshold=threshold,
        damped_share=damped / supervised,
        streams=start.streams,
        cache=objective.reference.where,
        listed=sorted(listed, key=lambda one: -one.conflict),
    )


def _texts(tokenizer: Any, document: Document, answer: Answer) -> tuple[str, str, str]:
    """First token, prompt and text of an answer."""
    before = document.input_ids[: answer.start].tolist()
    own = document.input_ids[answer.start : answer.stop].tolist()
    if answer.header and tuple(before[-len(answer.header) :]) == answer.header:
        before = before[: -len(answer.header)]
    prompt, text = (tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in (before, own))
    words = document.input_ids[answer.words : answer.words + 1].tolist()
    return tokenizer.decode(words), prompt, text


def show(found: Audit, console: Console | None = None) -> None:
    """The strongest conflicts of an audit."""
    console = console or Console()
    if found.listed:
        table = Table(title="PACT: answers that go along with harmful requests", title_justify="left")
        for header in ("row", "end of the prompt", "answer", "conflict", "weight left", "tokens"):
            table.add_column(header, justify="left" if header in ("end of the prompt", "answer") else "right")
        for one in found.listed[:ROWS]:
            copies = f" (+{len(one.rows) - 1})" if len(one.rows) > 1 else ""
            texts = (_shortened(one.prompt, from_end=True), _shortened(one.text))
            figures = (f"{one.conflict:.3f}", f"{one.weight_left:.0f}", f"{one.tokens:,}")
            table.add_row(f"{one.rows[0]}{copies}", *map(escape, texts), *figures)
        console.print(table)
        if len(found.listed) > ROWS:
            console.print(f"and {len(found.listed) - ROWS:,} more: `--out FILE` writes all of them.", markup=False)
    console.print(summary(found), highlight=False, markup=False)


def summary(found: Audit) -> str:
    """One line: how much was audited and listed, and what the run does about it."""
    damping = (
        f"damping takes away {found.damped_share:.2%} of the cross-entropy's weight"
        if found.damps
        else "nothing is damped (`conflict: keep`)"
    )
    return (
        f"{found.answers:,} answers in {found.sequences:,} sequences"
        f"{', the first of the stream,' if found.streams else ''} audited, {found.listed_answers:,} listed "
        f"(conflict above {found.threshold:g}); {damping}."
    )


def _shortened(text: str, *, from_end: bool = False) -> str:
    """One line of at most `WIDTH` characters, without the codes that would move or colour a terminal's text."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) <= WIDTH:
        return line
    return f"...{line[-WIDTH:]}" if from_end else f"{line[:WIDTH]}..."
