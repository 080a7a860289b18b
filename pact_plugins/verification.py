"""`pact verify OUTPUT_DIR`: whether a run trained under PACT from first step to last, from the files it left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pact_plugins.errors import PactError
from pact_plugins.evidence import EVIDENCE, Evidence, Part

STATE = "trainer_state.json"
"""The trainer's own record, in every checkpoint."""


@dataclass(frozen=True)
class Verification:
    """What the files of a run say.

    Attributes:
        folder: its output folder.
        faults: what speaks against it, a sentence each; none if every step ran under PACT.
        evidence: what the run recorded; None if there is none to be trusted.
    """

    folder: Path
    faults: tuple[str, ...]
    evidence: Evidence | None

    @property
    def holds(self) -> bool:
        """Whether the run trained under PACT from its first step to its last."""
        return not self.faults

    @property
    def sentence(self) -> str:
        """The result in one line."""
        if self.faults or self.evidence is None:
            return f"NOT under PACT: {self.folder}: {'; '.join(self.faults)}."
        last, parts = self.evidence.parts[-1], self.evidence.parts
        words = f"under PACT from step 1 to step {last.last_step:,} of {last.planned_steps:,}"
        if last.ended == "stopped early":
            words += " (stopped early)"
        tokens = sum(part.answer_tokens for part in parts)
        words += f": {tokens:,} answer tokens constrained, {sum(p.cache_hits for p in parts):,} sequences looked up"
        begun = [f"{part.first_step:,}" for part in parts[1:]]
        return f"{self.folder}: {words}{', resumed after step ' + ', '.join(begun) if begun else ''}."

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it."""
        known = self.evidence
        return {
            "folder": str(self.folder),
            "holds": self.holds,
            "sentence": self.sentence,
            "faults": list(self.faults),
            "covered_steps": known.covered if known else 0,
            "parts": [asdict(part) for part in known.parts] if known else [],
            "identity": known.identity if known else None,
            "about": known.about if known else None,
            "trained_model": known.trained_model if known else None,
        }


def verify(folder: Path) -> Verification:
    """Reads the evidence of the run in `folder`, and compares it with the trainer's own records in its checkpoints."""
    if not (folder / EVIDENCE).exists():
        return Verification(folder, (f"there is no {EVIDENCE}: the run had no PACT, or wrote elsewhere",), None)
    try:
        evidence = Evidence.read(folder)
    except PactError as error:
        return Verification(folder, (error.got,), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Verification(folder, (f"{EVIDENCE} is damaged ({type(error).__name__}: {error})",), None)
    faults = [*_of_parts(evidence.parts), *_of_checkpoints(folder, evidence.covered)]
    return Verification(folder, tuple(faults), evidence)


def _of_parts(parts: tuple[Part, ...]) -> Iterator[str]:
    if not parts:
        yield "training never began"
        return
    covered = 0
    for part in parts:
        if part.first_step > covered:
            yield f"nothing is known of steps {covered + 1:,} to {part.first_step:,}"
        if part.cache_misses:
            yield f"{part.cache_misses} sequence without a reference"
        covered = part.last_step
    last = parts[-1]
    if last.ended == "failed":
        yield f"PACT stopped it at step {last.last_step:,} of {last.planned_steps:,}: {last.error}"
    elif last.ended not in ("finished", "stopped early"):
        yield f"it did not end: the last record is of step {last.last_step:,} of {last.planned_steps:,}"
    elif not sum(part.answer_tokens for part in parts):
        yield "no answer token was constrained"


def _of_checkpoints(folder: Path, covered: int) -> Iterator[str]:
    """Checkpoints that hold steps without evidence, or whose log shows training without PACT."""
    for path in sorted([*folder.glob(f"checkpoint-*/{STATE}"), *folder.glob(STATE)]):
        name = path.parent.name if path.parent != folder else path.name
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            step, log = int(state["global_step"]), list(state["log_history"])
            bare = [entry["step"] for entry in log if "loss" in entry and "pact/kl" not in entry]
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"{name} cannot be read ({type(error).__name__}: {error})"
            continue
        if step > covered:
            yield f"{name} holds steps {covered + 1:,} to {step:,}, of which nothing is known"
        if bare:
            yield f"{name} has logged training without PACT (step {bare[0]:,})"
