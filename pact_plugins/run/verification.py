"""`pact verify OUTPUT_DIR`: whether the weights there were trained under PACT from first step to last.

It goes by the files that a run left: its evidence, the trainer's own records, the weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pact_plugins.errors import PactError
from pact_plugins.model.weights import in_files, merged_otherwise
from pact_plugins.run.evidence import EVIDENCE, FINAL, Evidence
from pact_plugins.run.metrics import is_held

STATE = "trainer_state.json"
"""The trainer's own record, in every checkpoint."""


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
"""Name of the folder of a checkpoint, by its step."""

UNFINISHED = "it did not end"


@dataclass(frozen=True)
class Verification:
    """What the files of a run say.

    Attributes:
        folder: its output folder, or one of its checkpoints.
        faults: what speaks against it, a sentence each; none if every step ran under PACT.
        evidence: what the run recorded; None if there is none to be trusted.
        weights: names of the files whose weights are those that the run left.
        step: of the checkpoint; None for the run.
    """

    folder: Path
    faults: tuple[str, ...]
    evidence: Evidence | None
    weights: tuple[str, ...] = ()
    step: int | None = None

    @property
    def holds(self) -> bool:
        """Whether the run trained under PACT from its first step to its last, and left these weights."""
        return not self.faults

    @property
    def sentence(self) -> str:
        """The result in one line."""
        if self.evidence is None or self.faults:
            unfinished = len(self.faults) == 1 and self.faults[0].startswith(UNFINISHED)
            return f"{'UNFINISHED' if unfinished else 'NOT under PACT'}: {self.folder}: {'; '.join(self.faults)}."
        last, parts = self.evidence.parts[-1], self.evidence.parts
        words = f"under PACT from step 1 to step {self.step or last.last_step:,} of {last.planned_steps:,}"
        if self.step is None and last.ended == "stopped early":
            words += " (stopped early)"
        words += f": {sum(map(self.evidence.held, parts)):,} answer tokens "
        if self.evidence.holds_rows:
            words += f"constrained, {sum(p.cache_hits for p in parts):,} sequences looked up"
        else:
            words += "of anchors constrained, and no row"
        if begun := [f"{part.first_step:,}" for part in parts[1:]]:
            words += f", resumed after step {', '.join(begun)}"
        whose = f"the weights in {', '.join(self.weights)} are this run's" if self.weights else "no weights lie there"
        return f"{self.folder}: {words}; {whose}."

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it."""
        known = self.evidence
        return {
            "folder": str(self.folder),
            "holds": self.holds,
            "sentence": self.sentence,
            "faults": list(self.faults),
            "weights": list(self.weights),
            "step": self.step,
            "covered_steps": known.covered if known else 0,
            "parts": [asdict(part) for part in known.parts] if known else [],
            "identity": known.identity.model_dump() if known else None,
            "about": known.about if known else None,
            "trained_model": known.trained_model if known else None,
        }


def verify(folder: Path, *, merged: Path | None = None, base: str | None = None, weights: bool = True) -> Verification:
    """Compares the evidence of a run with the trainer's records and the weights that lie in its folder.

    Args:
        folder: the run's output folder, or one of its checkpoints.
        merged: a folder of weights that are said to be the run's adapter merged into `base`.
        base: the model before the run: a folder, or a name on the hub.
        weights: whether to compare weights; a run's are saved after its last step.

    Raises:
        PactError: `merged` and `base` cannot be compared.
    """
    checkpoint = CHECKPOINT.fullmatch(folder.resolve().name)
    run = folder.resolve().parent if checkpoint and not (folder / EVIDENCE).exists() else folder
    if not (run / EVIDENCE).exists():
        fault = (
            f"there is no {EVIDENCE}: the run had no PACT, or wrote elsewhere (of merged weights, ask for the run: "
            "`pact verify RUN --merged DIR --base MODEL`)"
        )
        return Verification(folder, (fault,), None)
    try:
        evidence = Evidence.read(run)
    except PactError as error:
        return Verification(folder, (error.got,), None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Verification(folder, (f"{EVIDENCE} is damaged ({type(error).__name__}: {error})",), None)
    if run != folder and checkpoint:
        step = int(checkpoint[1])
        faults = [*_of_checkpoints(folder, evidence.covered)]
        if step > evidence.covered and not faults:
            faults = [f"nothing is known of steps {evidence.covered + 1:,} to {step:,}"]
        return _with_weights(Verification(folder, tuple(faults), evidence, step=step), checkpoint[0])
    faults = [*_of_parts(evidence), *_of_checkpoints(folder, evidence.covered)]
    if not weights:
        return Verification(folder, tuple(faults), evidence)
    for path in sorted(folder.glob("checkpoint-*")):
        faults += _with_weights(Verification(path, (), evidence), path.name).faults
    found = _with_weights(Verification(folder, tuple(faults), evidence), FINAL)
    if merged is None or base is None:
        return found
    other = merged_otherwise(folder, base, merged)
    faults = [
        *found.faults,
        *([f"{merged} is not the adapter of {folder} merged into {base}: {other}"] if other else []),
    ]
    return replace(found, faults=tuple(faults), weights=(*found.weights, str(merged)))


def _with_weights(found: Verification, name: str) -> Verification:
    """The same, with what the weights in its folder say, which evidence keeps under `name`."""
    assert found.evidence is not None, "evidence was read"
    try:
        there = in_files(found.folder)
    except PactError as error:
        return replace(found, faults=(*found.faults, str(error)))
    known = found.evidence.weights.get(name)
    if known is None and name == FINAL:  # it did not end: that is a fault by itself
        return found
    whose = "this run ended with" if name == FINAL else f"this run left as {name}"
    faults = [
        f"{found.folder / file} does not hold the weights that {whose}"
        for file, fingerprint in there.items()
        if fingerprint not in (known or ())
    ]
    return replace(found, faults=(*found.faults, *faults), weights=tuple(there))


def _of_parts(evidence: Evidence) -> Iterator[str]:
    parts = evidence.parts
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
        yield f"{UNFINISHED}: the last record is of step {last.last_step:,} of {last.planned_steps:,}"
    elif not any(map(evidence.held, parts)):
        yield "no answer token was constrained"


def _of_checkpoints(folder: Path, covered: int) -> Iterator[str]:
    """Checkpoints that hold steps without evidence, or whose log shows training without PACT."""
    for path in sorted([*folder.glob(f"checkpoint-*/{STATE}"), *folder.glob(STATE)]):
        name = path.parent.name if path.parent != folder else path.name
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            step, log = int(state["global_step"]), list(state["log_history"])
            bare = [entry["step"] for entry in log if "loss" in entry and not is_held(entry)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            yield f"{name} cannot be read ({type(error).__name__}: {error})"
            continue
        if step > covered:
            yield f"{name} holds steps {covered + 1:,} to {step:,}, of which nothing is known"
        if bare:
            yield f"{name} has logged training without PACT (step {bare[0]:,})"
