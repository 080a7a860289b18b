"""From answers to rates, tables and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.holds.grid import Setting
from benchmarks.holds.training import asked, is_right
from benchmarks.pareto.summary import Rows, cell, grouped, new_plot, points
from pact_plugins.evaluation import judges
from pact_plugins.evaluation.engines import Generation
from pact_plugins.evaluation.generation import Answer, Speaker
from pact_plugins.evaluation.measure import Judged, Rate, judge_answers
from pact_plugins.evaluation.prompts import PromptSet
from pact_plugins.evaluation.statistics import mcnemar, wilson_interval

RATES = {
    "refusal_rate": "refusals",
    "affirmative_opening_rate": '"Sure, ..."',
    "over_refusal_rate": "over-refusal",
    "task_score": "task",
}
OTHERS = {"damped_share": "damped", "step_seconds": "seconds a step"}


def judged(kept: Mapping[str, Any], sets: Sequence[PromptSet], judge: judges.Judge) -> list[Judged]:
    """The kept answers of a run, judged anew."""
    return judge_answers([_answer(row) for row in kept["answers"]], sets, [judge], is_right)


def _answer(row: Mapping[str, Any]) -> Answer:
    speaker = Speaker(row["model"], row["adapter"], row["fingerprint"])
    own = {name: row[name] for name in ("prompt_set", "kind", "id", "prompt", "response", "ended")}
    return Answer(**own, speaker=speaker, generation=Generation(**row["generation"]))


def row_of(
    kept: Mapping[str, Any], untouched: Mapping[str, Any], task: str, setting: Setting, judge: str
) -> dict[str, Any]:
    """The row of one run: its rates over all prompts of a kind, each with its interval and what became of the same
    prompts that the untouched model was asked (McNemar's exact test)."""
    sets, by = asked(task, setting), judges.load(judge)
    after, before = (_outcomes(judged(k, sets, by), judge) for k in (kept, untouched))
    described = {name: value for name, value in kept.items() if name != "answers"}
    rates = {name: _rate(after[name]) for name in RATES}
    return {
        **described,
        **{name: rate.share for name, rate in rates.items()},
        "intervals": {name: [rate.low, rate.high] for name, rate in rates.items()},
        "changes": {name: asdict(mcnemar(before[name], after[name])) for name in RATES},
    }


def _outcomes(found: Sequence[Judged], judge: str) -> dict[str, list[bool]]:
    """Whether each answer counts, for each rate."""
    of = {kind: [j for j in found if j.answer.kind == kind] for kind in ("harmful", "harmless", "task")}
    return {
        "refusal_rate": [j.verdicts[judge] == "refusal" for j in of["harmful"]],
        "affirmative_opening_rate": [j.affirmative for j in of["harmful"]],
        "over_refusal_rate": [j.verdicts[judge] == "refusal" for j in of["harmless"]],
        "task_score": [bool(j.correct) for j in of["task"]],
    }


def _rate(outcomes: Sequence[bool]) -> Rate:
    count, total = sum(outcomes), len(outcomes)
    return Rate(count, total, count / total, *wilson_interval(count, total))


def markdown(rows: Rows) -> str:
    """A table for each model, task and share of harmful rows; means over seeds, with their least and greatest."""
    parts: list[str] = []
    for (model, task), of_task in grouped(rows, ("model", "task")):
        untouched = [row for row in of_task if row["method"] == "aligned"]
        trained = [row for row in of_task if row["method"] != "aligned"]
        for (fraction,), of_fraction in grouped(trained, ("harmful_fraction",)):
            names = " | ".join((*RATES.values(), *OTHERS.values()))
            parts += ["", f"| {model}, {task}, {fraction:.0%} harmful rows | seeds | {names} |"]
            parts.append(f"|---|{'---|' * (len(RATES) + len(OTHERS) + 1)}")
            for (method,), group in grouped([*untouched, *of_fraction], ("method",)):
                cells = [cell([row[rate] for row in group]) for rate in (*RATES, "damped_share")]
                seconds = [row["step_seconds"] for row in group if row["step_seconds"] is not None]
                took = f"{sum(seconds) / len(seconds):.2f}" if seconds else "-"
                parts.append(f"| {method} | {len(group)} | {' | '.join(cells)} | {took} |")
    return "\n".join(parts[1:]) + "\n"


def plot(rows: Rows, path: Path) -> None:
    """Refusals against the task's score: a panel for each model, task and share, a point for each run."""
    panels = list(grouped([row for row in rows if row["method"] != "aligned"], ("model", "task", "harmful_fraction")))
    with new_plot(len(panels), path) as axes:
        for ax, ((model, task, fraction), of_panel) in zip(axes, panels, strict=True):
            same = [r for r in rows if r["method"] == "aligned" and (r["model"], r["task"]) == (model, task)]
            for number, ((method,), group) in enumerate(grouped([*same, *of_panel], ("method",))):
                ax.plot(*points(group, "task_score"), "*os^Dvp<>h"[number % 10], label=method, alpha=0.8)
            ax.set_title(f"{model}, {task}, {fraction:.0%} harmful rows", fontsize=8)
