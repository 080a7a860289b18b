"""Every bad input that we know of, by kind: `test_bad_inputs.py` runs them, `docs/errors.md` says more of each."""

from __future__ import annotations

from tests.bad_inputs import config, data, evaluation, files, judges, model, prompts, tokens, trainer
from tests.bad_inputs.case import BadInput, Section

SECTIONS = [
    Section("Settings: the `pact:` block", config.BLOCKS),
    Section("Run files", config.RUN_FILES),
    Section("What `pact check` finds in run files", config.CHECKED),
    Section("Safety tokens", tokens.INPUTS),
    Section("Models", model.INPUTS),
    Section("Model files", model.FILES),
    Section("Training data", data.INPUTS),
    Section("Trainers", trainer.INPUTS),
    Section("Caches, evidence and reports", files.INPUTS),
    Section("Prompt files", prompts.INPUTS),
    Section("Judges", judges.INPUTS),
    Section("Evaluations", evaluation.INPUTS),
]

__all__ = ["SECTIONS", "BadInput"]
