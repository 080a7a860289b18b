"""The user's own task in the report, from the run's own eval split, as hosts hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from pact_plugins import PactCallback, PactError
from pact_plugins.evaluation import engines
from pact_plugins.run.trainer import Start
from pact_plugins.storage import files
from tests import tiny
from tests.contract.hosts import HOSTS, Trainer, config, trl_trainer

pytestmark = pytest.mark.usefixtures("brief_runs")


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    """Two turns, under a system prompt."""
    return [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def rows(n: int = 5) -> list[list[dict[str, str]]]:
    return [conversation(f"What is {i}?", f"It is {i}.") for i in range(n)]


def asked(folder: Path, trainer: Any, **settings: Any) -> list[dict[str, Any]]:
    """The judged answers to the task, before and after."""
    how = {"task": "split", "limit": 3, "max_new_tokens": 4, **settings}
    trainer.add_callback(PactCallback(trainer, config(folder, eval=how)))
    trainer.train()
    lines = (folder / "out" / "_pact_evaluation" / "verdicts.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "task"]


@pytest.mark.parametrize("host", HOSTS)
def test_the_eval_split_is_asked_before_and_after(
    host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a task from another file, a prompt that holds its answer, or one that is not as rows are rendered."""
    shown: list[list[int]] = []
    whole = engines.continuations
    monkeypatch.setattr(
        engines, "continuations", lambda model, chats, *a, **k: shown.extend(chats) or whole(model, chats, *a, **k)
    )
    trainer = host(tiny.llama(), tmp_path, eval_data=Dataset.from_dict({"messages": rows()}))
    found = asked(tmp_path, trainer)
    assert [row["run"] for row in found] == ["against"] * 3 + ["model"] * 3
    own = {f"What is {i}?": i for i in range(5)}
    assert {row["prompt"] for row in found} <= own.keys()
    rendered = [
        tiny.tokenizer().apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        for messages in rows()
    ]
    asked_of = [rendered.index(list(chat)) for chat in shown if list(chat) in rendered]
    assert sorted(asked_of) == sorted(own[row["prompt"]] for row in found)
    measured = files.read(tmp_path / "out" / "_pact_evaluation" / "evaluation.json")["measurements"]
    (task,) = [m for m in measured if m["measure"] == "task_accuracy"]
    assert (task["prompt_set"], task["model"]["total"], task["against"]["total"]) == ("eval split", 3, 3)


@pytest.mark.parametrize("host", HOSTS)
def test_the_scorer_knows_the_expected_answer(host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an expected answer with the template's tokens in it, or of another row: the right one would be wrong.

    By the strictest scorer: what is exactly right is right to all of them.
    """

    def right(_model: Any, chats: list[list[int]], *_a: Any, **_k: Any) -> list[list[int]]:
        asked_of = [tiny.tokenizer().decode(chat).rpartition("What is ")[2][:1] for chat in chats]
        return [tiny.tokenizer().encode(f"It is {i}.") for i in asked_of]

    monkeypatch.setattr(engines, "continuations", right)
    trainer = host(tiny.llama(), tmp_path, eval_data=Dataset.from_dict({"messages": rows()}))
    assert {row["score"] for row in asked(tmp_path, trainer, scorer="exact")} == {1.0}


@pytest.mark.parametrize(
    ("data", "settings"),
    [
        ({"prompt": [r[:-1] for r in rows()], "completion": [r[-1:] for r in rows()]}, {}),
        ({"prompt": ["What is 1? ", "What is 2? "], "completion": ["It is 1.", "It is 2."]}, {}),
        ({"messages": rows()}, {"assistant_only_loss": False}),
        ({"messages": rows()}, {"assistant_only_loss": True, "packing": True}),
        ({"messages": rows()}, {"assistant_only_loss": True, "padding_free": True, "max_length": None}),
    ],
    ids=["prompt-completion", "plain", "on-inputs", "packed", "padding-free"],
)
def test_rows_of_trl(data: dict[str, Any], settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents layouts of TRL's whose prompts lose their end, or whose answers lose a part."""
    settings = {"assistant_only_loss": False, "max_length": 512, **settings}
    split = Dataset.from_dict(data)
    trainer = trl_trainer(tiny.llama(), tmp_path, split, eval_data=split, **settings)
    start = Start.of(trainer, config(tmp_path, eval={"task": "split", "limit": 100}))
    assert start.evaluation is not None
    (task,) = [s for s in start.evaluation.sets if s.kind == "task"]
    found = {tiny.tokenizer().decode(p.ids): (p.text, p.expected) for p in task.prompts}
    assert len(found) == len(next(iter(data.values())))
    for rendered, (text, expected) in found.items():
        number = text.strip("? ")[-1]
        assert expected == f"It is {number}."
        assert "It is" not in rendered
        assert rendered.rstrip("\n").endswith("<|assistant|>" if "<|user|>" in rendered else "? ")


@pytest.mark.parametrize(
    ("data", "settings", "said"),
    [
        (None, {}, "without one"),
        ({"messages": [conversation("What?", "No number.")]}, {"scorer": "last-number"}, "a number in every"),
        ({"messages": rows()}, {"scorer": "operator:contains"}, "as the response"),
    ],
    ids=["none", "no-number", "no-scorer"],
)
@pytest.mark.parametrize("host", HOSTS)
def test_a_split_that_cannot_be_asked_stops_the_run_before_it_begins(
    host: Trainer, data: Any, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Prevents hours of training before it is noticed that the task was not there, or could not be scored."""
    trainer = host(tiny.llama(), tmp_path, eval_data=data and Dataset.from_dict(data))
    with pytest.raises(PactError, match=said):
        asked(tmp_path, trainer, **settings)
    assert trainer.state.global_step == 0


def test_rows_that_are_cut_are_not_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prevents an expected answer without its end, which no response could be."""
    cut = conversation("What is 9?", "It is " + "very " * 100 + "long.")
    some = trl_trainer(tiny.llama(), tmp_path / "some", eval_data=Dataset.from_dict({"messages": [*rows(3), cut]}))
    assert {row["prompt"] for row in asked(tmp_path / "some", some, limit=9)} == {f"What is {i}?" for i in range(3)}
    assert "of the eval split, 1 rows are not asked: cut off at their end" in caplog.text
    none = trl_trainer(tiny.llama(), tmp_path / "none", eval_data=Dataset.from_dict({"messages": [cut]}))
    with pytest.raises(PactError, match="1 cut off at their end"):
        asked(tmp_path / "none", none)


def test_several_splits_are_a_task_each(tmp_path: Path) -> None:
    """Prevents splits of a dictionary, as TRL takes them, from being mixed or left out."""
    splits = {name: Dataset.from_dict({"messages": rows()}) for name in ("easy", "hard")}
    found = asked(tmp_path, trl_trainer(tiny.llama(), tmp_path, eval_data=splits), limit=2)
    assert [row["prompt_set"] for row in found] == [f"eval split {n}" for n in ("easy", "easy", "hard", "hard")] * 2
