"""Does the default hold? `python -m benchmarks.holds --model M ... --task DIR ... --json FILE [--quick]`.

Fine-tunes chat models on tasks, with and without harmful rows, by every method of `grid.py` on the same rows, and
measures refusals, affirmative openings, over-refusal and the task's score. `--demo` is the grid by which the defaults
were chosen, on the demo's model. The answers of each run are kept as they come, in FILE without its ending: the same
command goes on where it was stopped, and another `--judge` judges them anew.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.holds import summary
from benchmarks.holds.grid import METHODS, OF_DEMO, QUICK, RIVALS, Run, Setting, demo_runs, runs
from benchmarks.holds.tasks import DEMO
from benchmarks.holds.training import performed
from pact_plugins.config import DEFAULT_JUDGES
from pact_plugins.evaluation import judges
from pact_plugins.model.progress import progress
from pact_plugins.storage import files

NUMBERS = {
    "steps": int,
    "batch": int,
    "rows": int,
    "answer_tokens": int,
    "learning_rate": float,
    "full_kl_weight": float,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.holds", description=__doc__)
    parser.add_argument("--model", nargs="+", metavar="FOLDER_OR_NAME")
    parser.add_argument("--task", nargs="+", metavar="FOLDER", help="with train and test, .json or .jsonl")
    parser.add_argument("--demo", action="store_true", help="the demo's model, tasks, prompts and whole grid")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="tables of the result")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Pareto plot, SVG or PNG by its ending")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="the finalists, 10%% harmful rows, one seed; of the demo: the finalists",
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help=f"of {', '.join(RIVALS)}")
    parser.add_argument("--harmful-fractions", nargs="+", type=float, metavar="SHARE", help="0 and 0.1 without")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="0, 1 and 2 without; 0 to 4 of the demo")
    parser.add_argument("--judge", default=DEFAULT_JUDGES[0], help="as `pact eval --judge` takes it")
    parser.add_argument("--prompts", nargs="+", metavar="SET", help="as `pact eval` takes them; held-out without")
    parser.add_argument("--harmful-rows", metavar="FILE", help="harmful.json beside the task's folder without")
    parser.add_argument("--base-model", metavar="FOLDER_OR_NAME", help="for the tokens of `paper`")
    parser.add_argument("--adapter", choices=("lora", "full"))
    parser.add_argument("--bf16", action="store_true", default=None, help="forward passes in bfloat16")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each set and test rows, at most")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once, a thread each")
    for name, kind in NUMBERS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N")
    given = parser.parse_args()
    if not given.demo and not (given.model and given.task):
        parser.error("--model and --task, or --demo")
    if given.demo and (given.model or given.task):
        parser.error("--demo has a model and tasks of its own; as one of several they are `--model demo --task demo`")
    setting = _setting(given)
    rows = measured(_asked_for(given), setting, given.json, given.judge, given.jobs)
    table = summary.markdown(rows)
    if given.markdown:
        files.write_text(given.markdown, table)
    if given.plot:
        summary.plot(rows, given.plot)
    print(table)


def _setting(given: argparse.Namespace) -> Setting:
    """The demo's or the usual one, with what was given."""
    base = OF_DEMO if given.demo else Setting()
    chosen: dict[str, Any] = {name: value for name in vars(base) if (value := getattr(given, name)) is not None}
    if given.prompts:
        chosen["prompts"] = tuple(given.prompts)
    return replace(base, **chosen)


def _asked_for(given: argparse.Namespace) -> list[Run]:
    if given.demo and not given.quick:
        return [
            run
            for run in demo_runs()
            if run.method == "aligned"
            or (
                (run.method in (given.methods or METHODS))
                and run.harmful_fraction in (given.harmful_fractions or (run.harmful_fraction,))
                and run.seed in (given.seeds or (run.seed,))
            )
        ]
    brief = given.quick and not given.demo
    return list(
        runs(
            given.model or [DEMO],
            given.task or [DEMO],
            given.harmful_fractions or ((0.1,) if brief else (0.0, 0.1)),
            given.methods or (QUICK if given.quick else tuple(RIVALS)),
            given.seeds or ((0,) if brief else range(5) if given.demo else (0, 1, 2)),
        )
    )


def measured(asked_for: Sequence[Run], setting: Setting, path: Path, judge: str, jobs: int = 1) -> list[dict[str, Any]]:
    """A row for each run, of which those whose answers lie beside `path` are not run again; they are written there."""
    needed = dict.fromkeys(run for wanted in asked_for for run in (wanted.untouched(), wanted))
    folder = path.with_suffix("")
    paths = {run: folder / f"{run.key(setting)}.json" for run in needed}
    missing = [run for run, file in paths.items() if not file.exists()]
    rows: dict[Run, dict[str, Any]] = {}
    by = judges.load(judge)

    def summarise() -> None:
        for run in asked_for:
            both = paths[run], paths[run.untouched()]
            if run not in rows and all(file.exists() for file in both):
                kept, untouched = map(files.read, both)
                rows[run] = summary.row_of(kept, untouched, run.asked(setting), by)
        methods = {run.method: asdict(METHODS[run.method]) for run in asked_for}
        found = [rows[run] for run in asked_for if run in rows]
        files.write(path, {"judge": judge, "setting": setting.named(), "methods": methods, "runs": found})

    summarise()
    done = _performed(missing, setting, folder / "cache", jobs)
    for run, kept in progress(done, "runs", len(needed), True, done=len(needed) - len(missing)):
        files.write(paths[run], kept)
        summarise()
    return [rows[run] for run in asked_for]


def _performed(
    missing: Sequence[Run], setting: Setting, cache: Path, jobs: int
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Runs as they are done, with what is kept of them."""
    one = partial(performed, setting=setting, cache=cache)
    if jobs == 1:
        yield from map(one, missing)
        return
    # A thread for each run gives the same figures whatever the number of jobs.
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.imap_unordered(one, missing)


if __name__ == "__main__":
    main()
