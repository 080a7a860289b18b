"""Does the default hold? `python -m benchmarks.holds --model M ... --task DIR ... --json FILE [--quick]`.

Fine-tunes chat models on tasks, with and without harmful rows, by every method of `grid.py` on the same rows, and
measures refusals, affirmative openings, over-refusal and the task's score. The answers of each run are kept as they
come, in FILE without its ending: the same command goes on where it was stopped, and another `--judge` judges them anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.holds import summary
from benchmarks.holds.grid import METHODS, QUICK, Run, Setting, runs
from benchmarks.holds.training import perform
from pact_plugins import artefacts
from pact_plugins.config import DEFAULT_JUDGES
from pact_plugins.forward import progress


def main() -> None:
    default = Setting()
    parser = argparse.ArgumentParser(prog="benchmarks.holds", description=__doc__)
    parser.add_argument("--model", nargs="+", required=True, metavar="FOLDER_OR_NAME")
    parser.add_argument("--task", nargs="+", required=True, metavar="FOLDER", help="with train.json and test.json")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="tables of the result")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Pareto plot, SVG or PNG by its ending")
    parser.add_argument("--quick", action="store_true", help="the finalists, 10% harmful rows, one seed")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--harmful-fractions", nargs="+", type=float, metavar="SHARE", help="0 and 0.1 without")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="0, 1 and 2 without")
    parser.add_argument("--judge", default=DEFAULT_JUDGES[0], help="as `pact eval --judge` takes it")
    parser.add_argument(
        "--prompts", nargs="+", default=default.prompts, metavar="SET", help="as `pact eval` takes them"
    )
    parser.add_argument("--harmful-rows", metavar="FILE", help="harmful.json beside the task's folder without")
    parser.add_argument("--base-model", metavar="FOLDER_OR_NAME", help="for the tokens of `paper`")
    parser.add_argument("--adapter", choices=("lora", "full"), default=default.adapter)
    parser.add_argument("--bf16", action="store_true", help="forward passes in bfloat16")
    parser.add_argument("--limit", type=int, metavar="N", help="prompts of each set and test rows, at most")
    for name in ("steps", "batch", "rows", "answer_tokens"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name), metavar="N")
    for name in ("learning_rate", "full_kl_weight"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(default, name), metavar="X")
    given = parser.parse_args()
    setting = Setting(**{name: getattr(given, name) for name in vars(default)} | {"prompts": tuple(given.prompts)})
    asked_for = list(
        runs(
            given.model,
            given.task,
            given.harmful_fractions or ((0.1,) if given.quick else (0.0, 0.1)),
            given.methods or (QUICK if given.quick else tuple(METHODS)),
            given.seeds or ((0,) if given.quick else (0, 1, 2)),
        )
    )
    rows = measured(asked_for, setting, given.json, given.judge)
    if given.markdown:
        artefacts.write_text(given.markdown, summary.markdown(rows))
    if given.plot:
        summary.plot(rows, given.plot)
    print(summary.markdown(rows))


def measured(asked_for: Sequence[Run], setting: Setting, path: Path, judge: str) -> list[dict[str, Any]]:
    """A row for each run, of which those whose answers lie beside `path` are not run again; they are written there."""
    folder = path.with_suffix("")
    rows: list[dict[str, Any]] = []
    for run in progress(asked_for, "runs", len(asked_for), True):
        kept, untouched = (_kept(one, setting, folder) for one in (run, run.untouched()))
        rows.append(summary.row_of(kept, untouched, run.task, setting, judge))
        artefacts.write(path, {"judge": judge, "setting": vars(setting), "runs": rows})
    return rows


def _kept(run: Run, setting: Setting, folder: Path) -> dict[str, Any]:
    """The answers of a run: read where they are, else made and kept."""
    file = folder / f"{run.key(setting)}.json"
    if not file.exists():
        artefacts.write(file, perform(run, setting))
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
