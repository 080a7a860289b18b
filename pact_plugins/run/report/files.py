"""From the files of a run, and of an evaluation, to what the report shows."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

from pact_plugins.errors import PactError
from pact_plugins.evaluation.measure import Measurement
from pact_plugins.evaluation.of_run import FOLDER as EVALUATION
from pact_plugins.evaluation.run import Evaluation
from pact_plugins.run import token_profile
from pact_plugins.run.evidence import EVIDENCE, FINAL, HISTORY, Evidence
from pact_plugins.run.report.contents import Behaviour, Contents, Training, lines_of, samples_of
from pact_plugins.run.verification import Verification, verify
from pact_plugins.storage import files

RESULT, VERDICTS = "evaluation.json", "verdicts.jsonl"
T = TypeVar("T")

_EVALUATION, _PROFILES = TypeAdapter(Evaluation), TypeAdapter(dict[str, token_profile.Profile])


def contents_of(folder: Path, evaluation: Path | None = None, *, saved: bool = True) -> Contents:
    """What the report of `folder` shows.

    Args:
        folder: the output folder of a run, or the folder of an evaluation alone.
        evaluation: folder of the run's evaluation; `folder/_pact_evaluation` if there is one there, without.
        saved: whether the weights of the run lie in its folder by now.

    Raises:
        PactError: there is neither a run nor an evaluation, or a file is damaged.
    """
    is_run = (folder / EVIDENCE).exists()
    if evaluation is None:
        evaluation = _evaluated_in(folder)
    elif not (evaluation / RESULT).exists():
        raise _nothing(f"an evaluation ({RESULT}, written by `pact eval`)", evaluation)
    if not is_run and evaluation is None:
        raise _nothing(f"a run under PACT ({EVIDENCE}), or an evaluation ({RESULT})", folder)
    training = sound(lambda: training_of(folder, saved=saved), folder) if is_run else None
    behaviour, notes = None, list[str]()
    if evaluation is not None:
        evaluated = sound(lambda: _evaluated(evaluation), evaluation)
        behaviour = sound(lambda: _behaviour(evaluated), evaluation)
        notes = compared(folder, evaluated.found) if training else []
    return Contents(
        title=f"Did it hold? “{folder.resolve().name}”",
        trainings=(training,) if training else (),
        behaviour=behaviour,
        command=_command(folder, training) if training else "",
        notes=tuple(notes),
    )


def training_of(folder: Path, name: str = "run", *, saved: bool = True) -> Training:
    """What a run left in its output folder.

    Args:
        name: of the run in the report.
        saved: whether its weights lie there by now, to be compared with its evidence.

    Raises:
        OSError, ValueError, KeyError, TypeError, PactError: a file is missing or damaged.
    """
    evidence = Evidence.read(folder)
    log = files.read(folder / HISTORY)["log"] if (folder / HISTORY).exists() else []
    stored = files.read(folder / token_profile.FILE) if (folder / token_profile.FILE).exists() else {}
    profiles = _PROFILES.validate_python(stored)
    about = {**evidence.about, "fingerprints": {**evidence.identity.model_dump(), "data": evidence.data}}
    found = verify(folder, weights=saved)
    return Training(name, log, about, evidence.tokens, profiles, found.holds, _proof(found))


def _proof(found: Verification) -> str:
    if not found.holds or found.evidence is None:
        return f"not under PACT: {'; '.join(found.faults)}"
    last = found.evidence.parts[-1]
    words = f"under PACT, steps 1 to {last.last_step:,} of {last.planned_steps:,}"
    return f"{words}, these weights" if found.weights else f"{words} (of the saved weights, ask `pact verify`)"


@dataclass(frozen=True)
class Evaluated:
    """What `pact eval` left.

    Attributes:
        found: its result.
        rows: judged answers of each model, `against` before `model`.
    """

    found: Evaluation
    rows: dict[str, list[dict[str, Any]]]

    @property
    def paired(self) -> bool:
        """Whether there is a model before fine-tuning."""
        return "against" in self.rows

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        """Every prompt, with its set and kind."""
        return [(row["prompt_set"], row["kind"], row["prompt"]) for row in self.rows["model"]]

    @property
    def settings(self) -> dict[str, str]:
        """How answers were decoded and judged."""
        decoding = {key.replace("_", " "): str(value) for key, value in asdict(self.found.generation).items()}
        return {"judges": ", ".join(self.found.judges), **decoding}

    @property
    def agreements(self) -> tuple[str, ...]:
        """Of the judges, a sentence each."""
        return tuple(a.words(a.when if self.paired else "") for a in self.found.agreements)


def _evaluated_in(folder: Path) -> Path | None:
    """Where the evaluation of a run's folder lies, or of its own; None if there is none."""
    return next((f for f in (folder / EVALUATION, folder) if (f / RESULT).exists()), None)


def evaluation_of(folder: Path) -> Evaluated:
    """The evaluation in a run's folder, or in its own.

    Raises:
        PactError: there is none, or it is damaged.
    """
    there = _evaluated_in(folder)
    if there is None:
        raise _nothing(f"an evaluation ({RESULT}, written by `pact eval`)", folder)
    return sound(lambda: _evaluated(there), there)


def _evaluated(folder: Path) -> Evaluated:
    found = _EVALUATION.validate_python(files.read(folder / RESULT))
    rows = [json.loads(line) for line in (folder / VERDICTS).read_text(encoding="utf-8").splitlines()]
    of_runs = {run: [row for row in rows if row["run"] == run] for run in found.speakers}
    for run, speaker in found.speakers.items():
        _check_answers(folder, found.measurements, speaker.fingerprint, of_runs[run])
    return Evaluated(found, of_runs)


def _behaviour(e: Evaluated) -> Behaviour:
    samples, changed = samples_of([*e.rows.values()])
    return Behaviour(
        names=("before", "after") if e.paired else ("model",),
        speakers=tuple(map(str, e.found.speakers.values())),
        before=e.paired,
        settings={**e.settings, **{f"fingerprint, {run}": who.fingerprint for run, who in e.found.speakers.items()}},
        lines=lines_of([e.found.measurements]),
        warnings=e.found.warnings,
        agreements=e.agreements,
        samples=samples,
        changed=changed,
    )


def _check_answers(folder: Path, measurements: Sequence[Measurement], who: str, rows: Sequence[dict[str, Any]]) -> None:
    """Refuses answers that are not those of the rates."""
    asked = sum(total for *_, total in {(m.prompt_set, m.kind, m.model.total) for m in measurements})
    others = [row for row in rows if row["fingerprint"] != who]
    if len(rows) != asked or others:
        raise ValueError(f"{folder / VERDICTS} holds {len(rows) - len(others)} of the {asked} answers of {who}")


def compared(folder: Path, found: Evaluation) -> list[str]:
    """What cannot be told of whether the run in `folder` left the weights that answered; nothing if it did.

    Args:
        found: the result of the evaluation.

    Raises:
        PactError: it left other weights.
    """
    evidence = Evidence.read(folder)
    known, answered = evidence.weights, set(found.weights)
    if not known.get(FINAL):
        return ["Whose weights answered cannot be told: the run did not end."]
    if answered & set(known[FINAL]):
        return []
    who = found.model.adapter or found.model.model
    adapted = bool(cast(dict[str, Any], evidence.about.get("training", {})).get("adapter"))
    checkpoint = next((name for name, of in known.items() if answered & set(of)), None)
    if checkpoint is None and (not answered or adapted != (found.model.adapter is not None)):
        return [
            f"The answers are those of {who}, whose weights cannot be compared with this run's; of merged ones, ask "
            "`pact verify RUN --merged DIR --base MODEL`."
        ]
    raise PactError(
        expected=f"answers of the weights that the run in {folder} ended with",
        got=f"those of {f'its {checkpoint}' if checkpoint else f'other weights, {who}'}",
        consequence="The report would show what another model does.",
        remedy="Evaluate this run's model again (`pact eval`), or give the folder of the evaluation alone.",
    )


def _command(folder: Path, training: Training) -> str:
    """What measures the behaviour of a run, from its folder."""
    about = cast(dict[str, Any], training.about.get("training", {}))
    model = str(about.get("model") or "MODEL")
    if Path(model).exists():
        model = os.path.relpath(model, folder)
    who = ["--model", model, "--adapter", "."] if about.get("adapter") else ["--model", "."]
    return shlex.join(["pact", "eval", *who, "--against", model, "--out", EVALUATION])


def sound(read: Callable[[], T], folder: Path) -> T:
    """What `read` reads of files in `folder`.

    Raises:
        PactError: it fails as on damaged files.
    """
    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PactError(
            expected=f"sound files of a run or an evaluation in {folder}",
            got=f"{type(error).__name__}: {error}",
            consequence="The report would show something that was not measured.",
            remedy="Run `pact eval` again; a run's own evidence is written when it trains.",
        ) from error


def _nothing(expected: str, folder: Path) -> PactError:
    return PactError(
        expected=f"{expected} in {folder}",
        got="neither" if folder.is_dir() else "no such folder",
        consequence="There is nothing to report.",
        remedy="Give the output folder of a run that had PACT on, or what `pact eval --out` wrote.",
    )
