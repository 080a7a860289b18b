"""The demo in one picture: what the README shows of the report."""

from __future__ import annotations

from dataclasses import replace

from pact_plugins.run.report.contents import Behaviour
from pact_plugins.run.report.plots import Plot, rates

FILE = "picture.svg"
MODELS = {"aligned": "untouched", "sft": "plain fine-tuning", "default": "pact: true"}
"""Which of the demo's models it shows, and their names there."""
MEASURES = {"refusal_rate": "harmful", "over_refusal_rate": "harmless", "task_accuracy": "task"}
"""What it shows of them: measures by every judge, and the kind of prompts they are of."""


def picture(behaviour: Behaviour) -> Plot:
    """Draws `MEASURES` of `MODELS`, out of the whole behaviour of the demo's models."""
    places = [behaviour.names.index(name) for name in MODELS]
    lines = [
        replace(line, rates=tuple(line.rates[i] for i in places))
        for line in behaviour.lines
        if MEASURES.get(line.measure) == line.kind
    ]
    return rates(replace(behaviour, names=tuple(MODELS.values()), lines=tuple(lines)))
