"""A run's own evaluation, without a trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pact_plugins.config import EvalConfig
from pact_plugins.errors import PactError
from pact_plugins.evaluation import engines
from pact_plugins.evaluation.of_run import FOLDER, RunEvaluation
from pact_plugins.run.report.files import contents_of
from pact_plugins.storage import files
from tests import tiny
from tests.rows import flip_bit

SMALL = EvalConfig(limit=3, max_new_tokens=6)


def evaluation(folder: Path, config: EvalConfig = SMALL) -> RunEvaluation:
    return RunEvaluation(config, folder, tiny.tokenizer(), folder / "cache")


def test_a_resumed_run_is_compared_with_the_model_before_training(tmp_path: Path) -> None:
    """Prevents the weights of a checkpoint from being taken for the model before training."""
    model, trained = tiny.llama(0), tiny.llama(1)
    whole = evaluation(tmp_path)
    whole.before(model, "m", resumed=False)
    expected = whole.after(trained, "m", adapter=False)
    resumed = evaluation(tmp_path)
    resumed.before(trained, "m", resumed=True)
    assert resumed.after(trained, "m", adapter=False) == expected
    assert expected.against is not None
    assert expected.against.fingerprint != expected.model.fingerprint
    assert (expected.against.model, expected.model.model) == ("m", str(tmp_path))


def test_a_new_run_in_an_old_folder_asks_anew(tmp_path: Path) -> None:
    """Prevents the rates of the last run in the report of this one."""
    for seed in (0, 1):
        run = evaluation(tmp_path)
        run.before(tiny.llama(seed), "m", resumed=False)
        assert not (tmp_path / FOLDER / "evaluation.json").exists()
        found = run.after(tiny.llama(seed), "m", adapter=True)
        assert found.against is not None
        assert found.against.fingerprint == found.model.fingerprint
        assert files.read(tmp_path / FOLDER / "evaluation.json") == found.as_dict()


def test_the_model_before_training_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: runs that ask the same model the same questions again; or that take the answers of another one."""
    cache = tmp_path / "cache"
    shared = [RunEvaluation(SMALL, tmp_path / name, tiny.tokenizer(), cache) for name in ("a", "b", "c")]
    shared[0].before(tiny.llama(), "m", resumed=False)
    (kept,) = cache.glob("questions-*.json")
    with monkeypatch.context() as patch:
        patch.setattr(engines, "continuations", lambda *_a: pytest.fail("asked again"))
        shared[1].before(tiny.llama(), "m", resumed=False)
    files = [(tmp_path / name / FOLDER / "against.jsonl").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    shared[1].before(tiny.llama(1), "m", resumed=False)
    assert len(list(cache.glob("questions-*.json"))) == 2
    flip_bit(kept, -20)
    with pytest.raises(PactError, match="before training in"):
        shared[2].before(tiny.llama(), "m", resumed=False)


def test_a_scorer_has_a_task(tmp_path: Path) -> None:
    """Prevents: a setting that is written down and scores nothing."""
    with pytest.raises(PactError, match="no task among held-out"):
        evaluation(tmp_path, EvalConfig(limit=3, scorer="f1"))


def test_the_users_task_before_and_after(tmp_path: Path) -> None:
    """Prevents a report on refusals alone, for a run whose user wants to know whether the task was learned."""
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "x"}]} for i in "abcd"]
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = EvalConfig(limit=3, max_new_tokens=6, task=str(path), scorer="f1", system="Be kind.")
    for task in (str(path), f"{path}:task", f"{path}:task:messages"):
        assert evaluation(tmp_path, config.model_copy(update={"task": task})).sets[-1].kind == "task"
    run = evaluation(tmp_path, config)
    run.scorer = lambda _prompt, response, _expected: len(response) % 3 == 0
    run.before(tiny.llama(0), "m", resumed=False)
    run.after(tiny.llama(1), "m", adapter=False)
    behaviour = contents_of(tmp_path / FOLDER).behaviour
    assert behaviour is not None
    (line,) = [line for line in behaviour.lines if line.measure == "task_accuracy"]
    files = [(tmp_path / FOLDER / name).read_text().splitlines() for name in ("against.jsonl", "answers.jsonl")]
    answers = [[row["response"] for row in map(json.loads, lines) if row["kind"] == "task"] for lines in files]
    expected = [sum(len(text) % 3 == 0 for text in found) for found in answers]
    assert [rate.count for rate in line.rates] == expected
    assert [rate.total for rate in line.rates] == [3, 3]
    row = json.loads((tmp_path / FOLDER / "answers.jsonl").read_text().splitlines()[0])
    assert row["before"] == [{"role": "system", "content": "Be kind."}]


def test_a_resumed_run_without_answers_before_it_has_rates_after_it_alone(tmp_path: Path) -> None:
    """Prevents made-up rates of a model that is no more."""
    run = evaluation(tmp_path)
    run.before(tiny.llama(1), "m", resumed=True)
    found = run.after(tiny.llama(1), "m", adapter=False)
    assert found.against is None
    assert {row["run"] for row in map(json.loads, (tmp_path / FOLDER / "verdicts.jsonl").open())} == {"model"}


def test_answers_that_are_missing_are_not_given_by_the_trained_model(tmp_path: Path) -> None:
    """Prevents a before that was answered after."""
    evaluation(tmp_path).before(tiny.llama(), "m", resumed=False)
    path = tmp_path / FOLDER / "against.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(PactError, match="before training"):
        evaluation(tmp_path).before(tiny.llama(1), "m", resumed=True)
    with pytest.raises(PactError, match="max_new_tokens"):
        evaluation(tmp_path, EvalConfig(limit=3, max_new_tokens=7)).before(tiny.llama(1), "m", resumed=True)
    path.write_bytes(b"{")
    with pytest.raises(PactError, match="line 1"):
        evaluation(tmp_path).before(tiny.llama(1), "m", resumed=True)


def test_asking_leaves_training_as_it_was(tmp_path: Path) -> None:
    """Prevents a model that trains on in eval mode, or other random numbers than without the question."""
    model = tiny.llama().train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    evaluation(tmp_path).before(model, "m", resumed=False)
    assert torch.equal(torch.rand(3), expected)
    assert model.training


def test_what_cannot_be_asked_is_refused_at_once(tmp_path: Path) -> None:
    """Prevents days of training before a misspelt judge is noticed."""
    with pytest.raises(PactError, match="Did you mean `opening`"):
        evaluation(tmp_path, EvalConfig(judges=("openning",)))
    for task, words in (("nowhere.csv", r"nowhere\.csv"), (str(tmp_path / "p.csv"), "an expected answer")):
        (tmp_path / "p.csv").write_text("prompt\nWhy?\n")
        with pytest.raises(PactError, match=words):
            evaluation(tmp_path, EvalConfig(task=task))
    with pytest.raises(PactError, match="Did you mean `normalised`"):
        evaluation(tmp_path, EvalConfig(scorer="normalized"))
    with pytest.raises(PactError, match=r"nowhere\.csv"):
        evaluation(tmp_path, EvalConfig(prompts=("nowhere.csv:harmful",)))
