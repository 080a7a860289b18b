"""Safety against utility: `python -m benchmarks.pareto [--quick] --json FILE [--markdown FILE] [--plot FILE]`.

Fine-tunes the demo's aligned model in up to 150 ways (see `grid.py`) and measures refusals, affirmative openings,
over-refusal and task accuracy on held-out prompts. Rows are kept in FILE as they come: the same command goes on where
it was stopped, and runs what `grid.py` has come to ask for since.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.pareto import grid
from benchmarks.pareto.data import Task
from benchmarks.pareto.summary import RATES, markdown, plot
from benchmarks.pareto.training import describe, perform
from pact_plugins import artefacts
from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.forward import progress


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.pareto", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the finalists: five methods, 0% and 10%, five seeds")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="tables of the result")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Pareto plot, SVG or PNG by its ending")
    parser.add_argument("--model", type=Path, default=ALIGNED_MODEL, metavar="FOLDER", help="another chat model")
    parser.add_argument("--task", type=Path, metavar="FOLDER", help="another task: train.json and test.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="runs at once, a thread each")
    arguments = parser.parse_args()
    task = Task.read(arguments.task) if arguments.task else None
    runs = list(grid.finalists()) if arguments.quick else grid.everything()
    about = {"model": arguments.model.name, "task": arguments.task.name if arguments.task else "demo"}
    rows = measured(runs, arguments.json, about, arguments.model, task, arguments.jobs)
    if arguments.markdown:
        artefacts.write_text(arguments.markdown, markdown(rows))
    if arguments.plot:
        plot(rows, arguments.plot)
    print(markdown(rows))


def measured(
    runs: Sequence[grid.Run], path: Path, about: dict[str, str], model: Path, task: Task | None, jobs: int
) -> list[dict[str, Any]]:
    """A row for each run, of which those in the file at `path` are not run again; the file is kept up to date."""
    known: list[dict[str, Any]] = []
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        if {key: content[key] for key in about} != about:
            raise SystemExit(f"{path} holds runs of another model or task: give another file.")
        known = content["runs"]
    rows = {_key(row): row for row in known}
    missing = [run for run in runs if _key(describe(run)) not in rows]
    for row in progress(_performed(missing, model, task, jobs), "runs", len(missing), True):
        rows[_key(row)] = row
        artefacts.write(path, {**about, "runs": list(rows.values())})
    return [rows[_key(describe(run))] for run in runs]


def _key(row: dict[str, Any]) -> str:
    """What a row is a row of: all that `describe` gives."""
    return json.dumps({k: v for k, v in row.items() if k not in (*RATES, "train_seconds")}, sort_keys=True)


def _performed(runs: Sequence[grid.Run], model: Path, task: Task | None, jobs: int) -> Iterator[dict[str, Any]]:
    """Rows as they are done. A thread for each run gives the same figures whatever the number of jobs."""
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(partial(perform, model_path=model, task=task), runs)


if __name__ == "__main__":
    main()
