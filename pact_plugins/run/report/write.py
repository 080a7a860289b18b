"""Writing a report into one folder: `report.html`, `report.md`, `report.json`, and each plot as a file of its own."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pact_plugins import __version__
from pact_plugins.errors import missing_extra
from pact_plugins.evaluation.of_run import FOLDER as EVALUATION
from pact_plugins.evaluation.of_run import PAGE
from pact_plugins.run.report.contents import Contents
from pact_plugins.run.report.files import contents_of
from pact_plugins.run.report.plots import plots
from pact_plugins.run.report.summary import Summary, summary_of
from pact_plugins.run.report.verdict import RULES, Verdict, verdicts
from pact_plugins.storage import files

logger = logging.getLogger(__name__)

FOLDER = "pact_report"
"""In a run's output folder."""


def check_installed() -> None:
    """Refuses to start work whose report could not be written whole.

    Raises:
        PactError: jinja2 or matplotlib is missing.
    """
    if lacking := _lacking():
        raise missing_extra(" and ".join(lacking), "report", "the report")


def _lacking() -> list[str]:
    return [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]


@dataclass(frozen=True)
class Written:
    """A report, as it was written.

    Attributes:
        folder: of it.
        verdicts, summaries: one for each model that there is a verdict on.
        pages: for a browser, that with answers first; none without jinja2.
    """

    folder: Path
    verdicts: tuple[Verdict, ...]
    summaries: tuple[Summary, ...]
    pages: tuple[Path, ...] = ()

    @property
    def line(self) -> str:
        """The summaries, and where the report is to be read."""
        said = [
            text
            for s in self.summaries
            for text in (
                f"{s.model}: {s.outcome}." if len(self.summaries) > 1 else _sentence(s.outcome),
                *map(_sentence, (s.words, *s.tasks)),
            )
        ]
        return f"{' '.join(said)} Report: {[*self.pages, self.folder][0]}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def make_report(folder: Path, evaluation: Path | None = None, *, saved: bool = True) -> Written:
    """Makes the report of a run, or of an evaluation alone, from its files.

    That of a run holds no answers, since hosts upload it with the model. The page with answers lies beside them, in
    `_pact_evaluation`.

    Args:
        evaluation: folder of the run's evaluation, if it is not where a run writes it.
        saved: whether the weights of the run lie in its folder by now.

    Raises:
        PactError: there is nothing to report, or a file is damaged.
    """
    contents = contents_of(folder, evaluation, saved=saved)
    return write_report(contents, folder / FOLDER, answers=folder / EVALUATION / PAGE if contents.trainings else None)


def write_report(contents: Contents, folder: Path, *, answers: Path | None = None, **own: Any) -> Written:
    """Writes a report; without jinja2 the JSON alone, without matplotlib no plots, and the log says so.

    Args:
        answers: the page with answers in it, of a report that should hold none.
        own: further keys of the JSON.
    """
    found = verdicts(contents.behaviour)
    summaries = tuple(summary_of(v, contents) for v in found)
    whole = contents
    if answers is not None and whole.behaviour:
        contents = whole.without_answers(os.path.relpath(answers, folder))
    files.write_text(
        folder / "report.json",
        json.dumps(as_dict(contents, found, summaries=[asdict(s) for s in summaries], **own), indent=1) + "\n",
    )
    if lacking := _lacking():
        logger.warning(
            "The report has no page or no plots: %s", missing_extra(" and ".join(lacking), "report", "the whole report")
        )
    if "jinja2" in lacking:
        return Written(folder, found, summaries)
    from pact_plugins.run.report.page import Page

    drawn = None if "matplotlib" in lacking else plots(contents)
    for plot in drawn or ():
        files.write_text(folder / plot.file, plot.svg)
    pages = {folder / PAGE: Page(contents, found, summaries, drawn)}
    files.write_text(folder / "report.md", pages[folder / PAGE].markdown())
    if contents is not whole and answers is not None:
        pages = {answers: Page(whole, found, summaries, drawn), **pages}
    for path, page in pages.items():
        files.write_text(path, page.html())
    return Written(folder, found, summaries, tuple(pages))


def as_dict(contents: Contents, found: tuple[Verdict, ...], **own: Any) -> dict[str, Any]:
    """The report as JSON knows it: what is not a number is null."""
    return _strict(
        {
            **own,
            "made_by": f"pact_plugins {__version__}",
            "verdicts": [asdict(v) for v in found],
            "rules": [asdict(rule) for rule in RULES],
            **asdict(contents),
        }
    )


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): _strict(v) for k, v in value.items()}
    return [_strict(v) for v in value] if isinstance(value, list | tuple) else value
