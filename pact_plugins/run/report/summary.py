"""The top of the page: what happened, whether it was trained under PACT, what was damped, what to try next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pact_plugins.run.report.contents import Behaviour, Contents, Training
from pact_plugins.run.report.verdict import Outcome, Verdict, least_prompts

BROKEN = {
    "refusals": "it no longer refuses harmful requests as it did",
    "compliance": "it goes along with harmful requests more than it did",
    "affirmative openings": "it opens answers to harmful requests with “Sure, ...”",
    "over-refusal": "it refuses harmless requests that it answered before",
    "coherence": "its answers make less sense than before",
}
"""What each broken rule means."""

UNKNOWN = {
    "refusals": "whether harmful requests are still refused",
    "compliance": "whether harmful requests are still refused",
    "affirmative openings": "whether answers to harmful requests still open without agreeing",
    "over-refusal": "whether harmless requests are still answered",
    "coherence": "whether its answers still make sense",
}
"""What is not known where a rule shows nothing."""


@dataclass(frozen=True)
class Summary:
    """One model in a few lines.

    Attributes:
        model: its name in the report.
        outcome: as in its verdict.
        words: which side failed, or that none did.
        under_pact: whether every step ran under PACT; None where nothing was trained, as far as is known.
        proof: the same in words.
        damped: whose cross-entropy was left out.
        tasks: how well each task is done, and what cannot be told of it.
        next_step: what to try.
    """

    model: str
    outcome: Outcome
    words: str
    under_pact: bool | None
    proof: str
    damped: str
    tasks: tuple[str, ...]
    next_step: str


def summary_of(verdict: Verdict, contents: Contents) -> Summary:
    """The summary of a verdict, with what is known of the training of its model."""
    trainings = {t.name: t for t in contents.trainings}
    alone = contents.trainings[0] if len(contents.trainings) == 1 and len(contents.verdict_names) <= 1 else None
    training = trainings.get(verdict.model, alone)
    return Summary(
        model=contents.lead.get(verdict.model, verdict.model),
        outcome=verdict.outcome,
        words=_words(verdict, contents),
        under_pact=training.under_pact if training else None,
        proof=training.proof if training else "",
        damped=_damped(training),
        tasks=tuple(_tasks(verdict, contents.behaviour)) if contents.behaviour else (),
        next_step=_next_step(verdict, contents, training),
    )


def _words(verdict: Verdict, contents: Contents) -> str:
    if verdict.outcome == "held":
        return "It still refuses harmful requests, and still answers harmless ones."
    if contents.behaviour is None:
        return "Nobody has asked the model yet."
    if not verdict.deciding:
        return "There is no model before fine-tuning to compare it with."
    if verdict.outcome == "not shown":
        return f"There is too little to tell {_joined([*dict.fromkeys(UNKNOWN[rule] for rule in verdict.deciding)])}."
    words = _joined([BROKEN[rule] for rule in verdict.deciding])
    return f"{words[0].upper()}{words[1:]}."


def _joined(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _damped(training: Training | None) -> str:
    """Rows and share."""
    data: Mapping[str, Any] = training.about.get("data", {}) if training else {}
    if "damped_share" not in data:
        return ""
    share, of = data["damped_share"], "the training set" + "'s first rows" * bool(data.get("streams"))
    if not share:
        return f"no answer of {of}"
    words = f"{share:.1%} of the answers of {of}"
    if "damped_answers" in data:
        words = f"{data['damped_answers']:,} of {data['looked_at_answers']:,} answers of {of} ({share:.1%})"
    if rows := data.get("strongest_damped_rows"):
        words += f", above all row{'s' * (len(rows) > 1)} {', '.join(f'{row:,}' for row in rows)}"
    return words


def _tasks(verdict: Verdict, behaviour: Behaviour) -> Iterator[str]:
    """Scores before and after, and whether there are too few rows to say more."""
    model = behaviour.names.index(verdict.model)
    for line in behaviour.lines:
        if line.measure not in ("task_accuracy", "task_score"):
            continue
        right = "right" if line.measure == "task_accuracy" else "of the score"
        before = f", {line.rates[0].share:.1%} before" if behaviour.before else ""
        words = (
            f"{Path(line.prompt_set).name}: {line.rates[model].share:.1%} {right}{before}, {line.rates[0].total:,} rows"
        )
        if line.prompt_set in {f.prompt_set for f in verdict.beside}:
            words += f" (too few to tell whether it is refused more often: {least_prompts('task')} are the least)"
        yield words


def _next_step(verdict: Verdict, contents: Contents, training: Training | None) -> str:
    settings: Mapping[str, Any] = training.about.get("settings", {}) if training else {}
    if contents.behaviour is None:
        return "Ask it, from the run's folder:"
    if verdict.outcome == "held":
        return "Ask it about your own field: `pact eval --prompts FILE`."
    if not verdict.deciding:
        return "Ask the model before fine-tuning, too: `pact eval --against MODEL`."
    if verdict.outcome == "not shown":
        return _to_show(verdict, contents.behaviour)
    if training is None:
        return "See whether it was trained under PACT: `pact verify RUN`."
    if not training.under_pact:
        return "Train again from the original model, with `pact: true` from the first step."
    if "over-refusal" in verdict.deciding:
        if settings.get("objective") == "paper":
            return "Train with `objective: confidence`, which does not pull answers towards refusals."
        return (
            "Put harmless prompts of your field, and harmful ones that look like them, beside the shipped ones "
            "(`prompts: {harmful: FILE, harmless: FILE}`)."
        )
    if verdict.deciding == ("coherence",):
        return "Look at the answers below, then train with a lower learning rate."
    if settings.get("anchors") == 0:
        return "Switch the anchors on: leave `anchors` out, or set it to 4."
    if settings.get("conflict") == "keep":
        return "Leave out what harmful rows teach: `conflict: damp`."
    return "Look at the data with `pact audit`, then raise `weight`."


def _to_show(verdict: Verdict, behaviour: Behaviour) -> str:
    sentence = verdict.sentence
    if "judges disagree" in sentence:
        return "Read the answers that judges call differently, or let another judge decide: `--judge NAME`."
    if "could not be judged" in sentence or "no judge was asked" in sentence:
        return "Add a judge that reads these answers: `pact eval --judge NAME`."
    if "prompts were asked" in sentence:
        return "Ask both kinds of prompts, harmful and harmless: `pact eval` does, without `--prompts`."
    if "refused none" in sentence:
        return "Begin with a model that refuses: PACT keeps refusals that are there, and adds none."
    asked = min(line.rates[0].total for line in behaviour.lines if line.kind != "task")
    if asked < least_prompts():
        return f"Ask more prompts, without a limit: {least_prompts()} of each kind are the least that can show it."
    return f"Ask more prompts of each kind than these {asked:,}: of so few, a change as small as this may be chance."
