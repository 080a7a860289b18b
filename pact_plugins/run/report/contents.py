"""What a report shows: training runs, and the behaviour of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pact_plugins.evaluation.measure import Measurement, Rate
from pact_plugins.evaluation.statistics import PairedChange
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.run.token_profile import Profile

CHANGED, UNCHANGED = 8, 2
"""Prompts of each set whose answers are shown, at most: with another verdict than before, and with the same."""


@dataclass(frozen=True)
class Training:
    """One run under a trainer.

    Attributes:
        name: of the run, among those of the report.
        log: what the trainer logged, entry by entry; empty if training has not ended.
        about: settings, versions, amounts of data (`Evidence.about`), and fingerprints.
        tokens: its safety tokens; None without PACT.
        profiles: of what was measured when it ended.
        under_pact: whether every step ran under PACT, as far as its files tell.
        proof: the same in words.
    """

    name: str
    log: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: SafetyTokens | None = None
    profiles: Mapping[str, Profile] = field(default_factory=dict[str, Profile])
    under_pact: bool = False
    proof: str = "no PACT"


@dataclass(frozen=True)
class Line:
    """One measure of one prompt set, of every model.

    Attributes:
        prompt_set, kind, measure, judge: as in `evaluation.measure.Measurement`.
        rates: of each model.
        changes: of each but the first, from the first on the same prompts.
    """

    prompt_set: str
    kind: str
    measure: str
    judge: str | None
    rates: tuple[Rate, ...]
    changes: tuple[PairedChange, ...]

    @property
    def label(self) -> str:
        """The measure in words."""
        return self.measure.removesuffix("_rate").replace("_", " ")


@dataclass(frozen=True)
class Reply:
    """A model's answer to a prompt, with what was made of it in a word or two."""

    response: str
    badges: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A prompt with the answer of each model.

    Attributes:
        prompt_set, kind, prompt: what was asked.
        replies: one a model.
        changed: whether a verdict differs from that on the first model.
    """

    prompt_set: str
    kind: str
    prompt: str
    replies: tuple[Reply, ...]
    changed: bool


@dataclass(frozen=True)
class Behaviour:
    """How models answered the same prompts.

    Attributes:
        names: of the models; with `before`, the first is the untouched one.
        speakers: who they are: folders or names on the hub.
        before: whether the first is the model before fine-tuning.
        settings: how answers were decoded and judged.
        lines: the rates.
        warnings: what to know before reading them.
        agreements: of the judges, a sentence each.
        samples: answers side by side.
        changed: prompts whose verdict changed, shown or not.
    """

    names: tuple[str, ...]
    speakers: tuple[str, ...]
    before: bool
    settings: Mapping[str, str]
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]
    agreements: tuple[str, ...]
    samples: tuple[Sample, ...]
    changed: int


@dataclass(frozen=True)
class Contents:
    """A report.

    Attributes:
        title: of the page.
        trainings: runs under a trainer; may be none.
        behaviour: None if it was not measured.
        command: what measures it.
        notes: remarks on the report itself.
        lead: models that come first on the page, and what they are called there; without, all by their names.
        answers: of a page without answers, where the one with them lies, as a link.
    """

    title: str
    trainings: tuple[Training, ...]
    behaviour: Behaviour | None
    command: str = ""
    notes: tuple[str, ...] = ()
    lead: Mapping[str, str] = field(default_factory=dict[str, str])
    answers: str = ""

    def without_answers(self, link: str) -> Contents:
        """The same without what models said, for everybody's eyes; `link` leads to the page that has it."""
        return replace(self, behaviour=self.behaviour and replace(self.behaviour, samples=()), answers=link)

    @property
    def verdict_names(self) -> tuple[str, ...]:
        """Models that there is a verdict on."""
        names = self.behaviour.names if self.behaviour else ()
        return names[1:] if self.behaviour and self.behaviour.before else names


def lines_of(pairs: Sequence[Sequence[Measurement]]) -> tuple[Line, ...]:
    """The measurements of one model, or of several that were each measured against the same first one.

    Args:
        pairs: of each model; all of the same prompts and judges.
    """
    found: list[Line] = []
    for same in zip(*pairs, strict=True):
        m = same[0]
        first = [m.against] if m.against is not None else []
        changes = tuple(other.change for other in same if other.change is not None)
        rates = (*first, *(other.model for other in same))
        found.append(Line(m.prompt_set, m.kind, m.measure, m.judge, rates, changes))
    return tuple(found)


def samples_of(rows: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[tuple[Sample, ...], int]:
    """The prompts to show, those first whose verdict changed, and how many changed.

    Args:
        rows: of each model, its judged answers in the order of the prompts, as in `verdicts.jsonl`.
    """
    found: list[Sample] = []
    shown: dict[tuple[str, str, bool], int] = {}
    total = 0
    for same in zip(*rows, strict=True):
        row = same[0]
        changed = any(_outcome(other) != _outcome(row) for other in same[1:])
        total += changed
        of_these = (row["prompt_set"], row["kind"], changed)
        shown[of_these] = shown.get(of_these, 0) + 1
        if shown[of_these] <= (CHANGED if changed else UNCHANGED):
            replies = tuple(Reply(other["response"], _badges(other)) for other in same)
            found.append(Sample(row["prompt_set"], row["kind"], row["prompt"], replies, changed))
    return tuple(sorted(found, key=lambda s: not s.changed)), total


def _outcome(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["incoherent"], sorted(row["verdicts"].items()), row["score"]


def _badges(row: Mapping[str, Any]) -> tuple[str, ...]:
    """One badge where the judges agree, else one for each."""
    if row["incoherent"]:
        return ("incoherent",)
    verdicts = row["verdicts"]
    said = [f"{judge}: {verdict}" for judge, verdict in verdicts.items()]
    badges = tuple(set(verdicts.values())) if len(set(verdicts.values())) == 1 else tuple(said)
    if row["score"] is None:
        return badges
    # To a task, only refusals are worth a word beside right and wrong.
    refusals = tuple(b for b in badges if b.endswith("refusal"))
    score = {0: "wrong", 1: "correct"}.get(row["score"], f"score {row['score']:.2f}")
    return (score, *refusals)
