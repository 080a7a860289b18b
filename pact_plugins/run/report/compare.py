"""Several runs on one page: each with its evaluation against the same model before fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pact_plugins.errors import PactError
from pact_plugins.run.evidence import EVIDENCE
from pact_plugins.run.report.contents import Behaviour, Contents, Training, lines_of, samples_of
from pact_plugins.run.report.files import EVALUATION, Evaluated, compared, evaluation_of, sound, training_of
from pact_plugins.storage import files


def comparison_of(folders: Sequence[Path]) -> Contents:
    """What the page of these runs shows, in their order.

    Args:
        folders: of runs with an evaluation in them, or of evaluations alone, as of runs without PACT.

    Raises:
        PactError: fewer than two; one has no evaluation against another model; or they were asked or judged otherwise.
    """
    names = [_name(folder) for folder in folders]
    if len(set(names)) < 2 or len(set(names)) < len(names):
        raise PactError(
            expected="two runs or more, in folders of different names",
            got=", ".join(names) or "none",
            consequence="There is nothing to compare, or nobody could tell which is which.",
            remedy="Name the folders apart: the page calls each run by its folder.",
        )
    evaluations = [evaluation_of(folder) for folder in folders]
    first = evaluations[0]
    for folder, other in zip(folders, evaluations, strict=True):
        _check_alike(folders[0], first, folder, other)
    trainings = [
        sound(lambda folder=folder, name=name: _training(folder, name), folder)
        for folder, name in zip(folders, names, strict=True)
    ]
    under_pact = {t.name for t in trainings if t.about}
    notes = [
        f"{name}: {note}"
        for folder, name, evaluated in zip(folders, names, evaluations, strict=True)
        if name in under_pact
        for note in compared(folder, evaluated.found)
    ]
    samples, changed = samples_of([first.rows["against"], *(e.rows["model"] for e in evaluations)])
    return Contents(
        title="Did it hold? " + ", ".join(f"“{name}”" for name in names),
        trainings=tuple(trainings),
        notes=tuple(notes),
        behaviour=Behaviour(
            names=("before", *names),
            speakers=(str(first.found.against), *(str(e.found.model) for e in evaluations)),
            before=True,
            settings=first.settings,
            lines=lines_of([e.found.measurements for e in evaluations]),
            warnings=tuple(f"{n}: {w}" for n, e in zip(names, evaluations, strict=True) for w in e.found.warnings),
            agreements=tuple(f"{n}: {a}" for n, e in zip(names, evaluations, strict=True) for a in e.agreements),
            samples=samples,
            changed=changed,
        ),
    )


def _name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == EVALUATION else folder.name


def _training(folder: Path, name: str) -> Training:
    folder = folder.resolve().parent if folder.resolve().name == EVALUATION else folder
    if not (folder / EVIDENCE).exists():
        return Training(name, [], proof=f"no PACT, as far as its folder tells: there is no {EVIDENCE}")
    off = not files.read(folder / EVIDENCE)["pact"]
    return Training(name, []) if off else training_of(folder, name)


def _rates_of(evaluated: Evaluated) -> list[tuple[str, str, str, str | None]]:
    return [(m.prompt_set, m.kind, m.measure, m.judge) for m in evaluated.found.measurements]


def _check_alike(folder_one: Path, one: Evaluated, folder: Path, other: Evaluated) -> None:
    """Refuses rates that cannot stand side by side."""
    differs = None
    if not other.paired:
        differs = "no model before fine-tuning"
    elif other.asked != one.asked:
        differs = "other prompts"
    elif _rates_of(other) != _rates_of(one):
        differs = "other judges"
    elif other.found.generation != one.found.generation:
        differs = "answers that were decoded otherwise"
    elif [m.against for m in other.found.measurements] != [m.against for m in one.found.measurements]:
        differs = "other rates before fine-tuning"
    if differs:
        raise PactError(
            expected=f"evaluations with the same prompts, judges and model before fine-tuning as {folder_one}",
            got=f"{differs} in {folder}",
            consequence="Rates side by side would not be of the same thing.",
            remedy=f"Evaluate each alike: `pact eval --model MODEL --adapter RUN --against MODEL "
            f"--out RUN/{EVALUATION}`.",
        )
