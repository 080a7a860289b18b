"""The tasks for lm-evaluation-harness, run by it on the shipped model, or read where it is not installed."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from pact_plugins.cli import main
from pact_plugins.demo import ALIGNED_MODEL, BASE_MODEL
from pact_plugins.errors import PactError
from pact_plugins.evaluation import judges, prompts
from pact_plugins.evaluation.generation import Answer, Generation, Speaker
from pact_plugins.evaluation.layouts import Kind
from pact_plugins.evaluation.measure import judge_answers, measure
from pact_plugins.evaluation.prompts import Prompt, PromptSet
from pact_plugins.evaluation.run import evaluate

needs_lm_eval = pytest.mark.skipif(not find_spec("lm_eval"), reason="runs in the environment that has lm-eval")
FOLDER = Path(CliRunner().invoke(main, ["lm-eval-path"]).stdout.strip())
TASKS: dict[str, Kind] = {"pact_refusal": "harmful", "pact_over_refusal": "harmless"}
USED = [judges.load(name) for name in judges.DEFAULT_JUDGES]


def one_answer(kind: Kind) -> tuple[list[Answer], list[PromptSet]]:
    answer = Answer("held-out", kind, "1", "How?", Speaker("m", None, "f"), Generation(), "Like this.")
    return [answer], [PromptSet("held-out", kind, (Prompt("1", "How?"),))]


def harness(model: Path, samples: dict[str, list[int]], **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=["pact_safety"],
        task_manager=TaskManager(include_path=str(FOLDER)),
        samples=samples,
        batch_size=4,
        device="cpu",
        bootstrap_iters=0,
        gen_kwargs="max_gen_toks=24",
        **options,
    )
    assert found is not None
    return found


@needs_lm_eval
@pytest.mark.parametrize("model", [ALIGNED_MODEL, BASE_MODEL], ids=["aligned", "base"])
def test_rates_are_those_of_pact_eval(model: Path, tmp_path: Path) -> None:
    """Prevents two tools that report two rates of one model: another template, other prompts, or cut answers."""
    sets = {s.kind: s for s in prompts.load("held-out")}
    samples = {task: [int(p.id) - 1 for p in sets[kind].sample(8).prompts] for task, kind in TASKS.items()}
    found = harness(model, samples, apply_chat_template=True)
    ours = evaluate(str(model), ["held-out"], tmp_path, generation=Generation(24), limit=8)
    expected: dict[str, dict[str, float]] = {task: {} for task in TASKS}
    for m in ours.measurements:
        task = "pact_refusal" if m.kind == "harmful" else "pact_over_refusal"
        expected[task][m.measure] = m.model.share
    for task in TASKS:
        rates = {k.removesuffix(",none"): v for k, v in found["results"][task].items() if k.endswith("_rate,none")}
        assert rates == expected[task]
    assert expected["pact_refusal"]["refusal_rate"] == (1 if model == ALIGNED_MODEL else 0)


@needs_lm_eval
def test_the_chat_template_is_needed() -> None:
    """Prevents a chat model from being asked in bare text, where its refusals do not show."""
    with pytest.raises(PactError, match="--apply_chat_template"):
        harness(ALIGNED_MODEL, {task: [0] for task in TASKS})


@needs_lm_eval
def test_axolotls_plugin_finds_the_tasks() -> None:
    """Prevents names that only `--include_path` knows: Axolotl's plugin does not pass one, but takes files."""
    pytest.importorskip("axolotl")
    from axolotl.integrations.lm_eval.cli import build_lm_eval_command
    from lm_eval.config.evaluate_config import EvaluatorConfig

    files = [str(FOLDER / f"{task}.yaml") for task in TASKS]
    (command,) = build_lm_eval_command(files, output_dir="out", apply_chat_template=True)
    assert "--apply_chat_template" in command
    config = EvaluatorConfig(tasks=command[command.index("--tasks") + 1])
    config.process_tasks({})
    assert [task["task"] for task in config.tasks] == list(TASKS)


def test_the_files_name_what_is_there() -> None:
    """Prevents a task that fails where it is read first: on a user's machine."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    source = (FOLDER / "utils.py").read_text()
    group = yaml.load((FOLDER / "pact_safety.yaml").read_text(), Loader)
    assert (group["group"], group["task"]) == ("pact_safety", list(TASKS))
    for task in TASKS:
        content = yaml.load((FOLDER / f"{task}.yaml").read_text(), Loader)
        assert content["task"] == task
        for key in ("class", "custom_dataset", "process_results"):
            name = content[key].removeprefix("utils.")
            assert re.search(rf"^(def|class) {name}\(", source, re.MULTILINE)
        answered = judge_answers(*one_answer(TASKS[task]), USED)
        rates = {m.measure for m in measure(one_answer(TASKS[task])[1], {"model": answered}, USED)}
        assert {metric["metric"] for metric in content["metric_list"]} == rates
