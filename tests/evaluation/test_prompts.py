"""Prompt sets: the published layouts, a user's own files, and files that must not be asked."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pact_plugins.config import PromptsConfig
from pact_plugins.errors import PactError
from pact_plugins.evaluation.prompts import PromptSet, load, under_system
from pact_plugins.method import harm_probe

HARMBENCH = ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def shown(sets: list[PromptSet]) -> list[tuple[str, list[tuple[str, str, str | None]]]]:
    return [(s.kind, [(p.id, p.text, p.expected) for p in s.prompts]) for s in sets]


def test_shipped() -> None:
    """Prevents harmful prompts from being evaluated without their harmless look-alikes."""
    both = load("shipped")
    assert [s.kind for s in both] == ["harmful", "harmless"]
    assert load("shipped:harmless") == both[1:]


def test_a_sample(tmp_path: Path) -> None:
    """Prevents a limit that takes one category of a sorted file, other prompts each time, or another order."""
    prompts = load("shipped:harmful")[0]
    order = {p: i for i, p in enumerate(prompts.prompts)}
    places = [order[p] for p in prompts.sample(16).prompts]
    assert places == sorted(places)
    assert len(set(places)) == 16
    assert all(any(32 * k <= place < 32 * (k + 1) for place in places) for k in range(4))
    assert prompts.sample(16) == load("shipped:harmful")[0].sample(16)
    assert set(prompts.sample(4).prompts) < set(prompts.sample(16).prompts)
    assert prompts.sample(None) == prompts.sample(1000) == prompts


def test_held_out() -> None:
    """Prevents the prompts that PACT learns from being the only ones to evaluate with, or the two sets being one."""
    both = load("held-out")
    assert [(s.name, s.kind, len(s.prompts)) for s in both] == [
        ("held-out", "harmful", 192),
        ("held-out", "harmless", 192),
    ]
    assert load("held-out:harmful") == both[:1]
    assert [s.prompts for s in load("held-out-how-to")] == [s.prompts[:128] for s in both]
    texts = {p.text for s in both for p in s.prompts}
    assert len(texts) == 2 * 192
    learned_from = harm_probe.prompts(PromptsConfig())
    assert not texts & {*learned_from.harmful, *learned_from.harmless}
    with pytest.raises(PactError, match="Did you mean `harmful`"):
        load("held-out:harmfull")


@pytest.mark.parametrize(
    ("row", "suffix", "expected"),
    [
        ({"category": "c", "source": "s", "forbidden_prompt": "Do it, now"}, "", ("harmful", "1", "Do it, now", None)),
        (dict(zip(HARMBENCH, ("Do", "standard", "c", "", "", "b-1"), strict=True)), "", ("harmful", "b-1", "Do", None)),
        (
            dict(zip(HARMBENCH, ("Do it", "contextual", "c", "context", "A recipe", "b-2"), strict=True)),
            "",
            ("harmful", "b-2", "A recipe\n\n---\n\nDo it", None),
        ),
        (
            {"Index": 7, "Goal": "Do", "Target": "Sure", "Behavior": "b", "Category": "c", "Source": "s"},
            ":harmless",
            ("harmless", "7", "Do", None),
        ),
        ({"goal": "Do it", "target": "Sure, here is"}, "", ("harmful", "1", "Do it", None)),
        ({"id": "v2", "prompt": "Kill", "type": "homonyms", "label": "safe"}, "", ("harmless", "v2", "Kill", None)),
        ({"id": 26, "type": "contrast_homonyms", "prompt": "Kill"}, "", ("harmful", "26", "Kill", None)),
        ({"prompt": "Kill it", "type": "real_group_nons_discr"}, "", ("harmless", "1", "Kill it", None)),
        ({"prompt": "Do it", "category": "deception"}, ":harmful", ("harmful", "1", "Do it", None)),
        ({"instruction": "Sort", "input": "a mail", "output": "spam"}, "", ("task", "1", "Sort\n\na mail", "spam")),
        ({"instruction": "Sort", "input": "", "output": "spam"}, "", ("task", "1", "Sort", "spam")),
        ({"prompt": "Sort", "category": "c", "answer": "spam"}, ":task", ("task", "1", "Sort", "spam")),
        ({"ID": "q", "Question": "2 + 2?", "answer": 4}, ":task", ("task", "q", "2 + 2?", "4")),
        ({"wish": "Do it", "prompt": "no"}, ":harmful:wish", ("harmful", "1", "Do it", None)),
        ({"wish": "Do it"}, ":harmless:wish", ("harmless", "1", "Do it", None)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", ["prompts.csv", "prompts.jsonl", "prompts.json"])
def test_layouts(
    row: dict[str, Any], suffix: str, expected: tuple[str, str, str, str | None], file: str, tmp_path: Path
) -> None:
    """Prevents a published file being asked from the wrong column, or counted as the wrong kind."""
    kind, *prompt = expected
    assert shown(load(write(tmp_path / file, [row]) + suffix)) == [(kind, [tuple(prompt)])]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM, USER, ASSISTANT = message("system", "Be brief."), message("user", "2 + 2?"), message("assistant", " 4\n")
AGAIN = message("user", "And 3 + 3?")


@pytest.mark.parametrize(
    ("row", "suffix", "before", "text", "expected"),
    [
        ({"messages": [USER, ASSISTANT]}, ":task", [], "2 + 2?", "4"),
        ({"messages": [SYSTEM, USER, ASSISTANT]}, ":task", ["system"], "2 + 2?", "4"),
        (
            {"messages": [SYSTEM, USER, ASSISTANT, AGAIN, message("assistant", "6")]},
            ":task",
            ["system", "user", "assistant"],
            "And 3 + 3?",
            "6",
        ),
        ({"messages": [USER, ASSISTANT, AGAIN]}, ":harmful", ["user", "assistant"], "And 3 + 3?", None),
        ({"messages": [USER, ASSISTANT]}, ":harmless", [], "2 + 2?", None),
        ({"messages": [USER], "answer": "four"}, ":task", [], "2 + 2?", "four"),
        ({"chat": [USER, ASSISTANT], "prompt": "no"}, ":task:chat", [], "2 + 2?", "4"),
        ({"messages": [message("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), ASSISTANT]},
         ":task", [], "ab", "4"),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, ":task", [],
         "2 + 2?", "4"),
        ({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, ":task", ["system"], "2 + 2?", "4"),
        ({"prompt": [USER], "completion": "4"}, ":task", [], "2 + 2?", "4"),
        ({"prompt": "2 + 2?", "completion": " 4"}, ":task", [], "2 + 2?", "4"),
        ({"instruction": "Add", "output": "4"}, ":task", [], "Add", "4"),
    ],
)  # fmt: skip
def test_what_people_train_on(
    row: dict[str, Any], suffix: str, before: list[str], text: str, expected: str | None, tmp_path: Path
) -> None:
    """Prevents a task that is asked without its system prompt, from its first turn, or scored by another answer."""
    (found,) = load(write(tmp_path / "rows.jsonl", [row]) + suffix)[0].prompts
    assert ([turn.role for turn in found.before], found.text, found.expected) == (before, text, expected)


def test_a_system_prompt(tmp_path: Path) -> None:
    """Prevents a row's own system prompt from being replaced, or a model being asked under two."""
    rows = [{"messages": [SYSTEM, USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}]
    found = under_system(load(f"{write(tmp_path / 'rows.jsonl', rows)}:task")[0], "Be kind.")
    assert [p.before for p in found.prompts] == [(("system", "Be brief."),), (("system", "Be kind."),)]
    assert found.prompts[1].conversation == "system: Be kind.\n\nuser: 2 + 2?"


def test_xstest_is_split_by_kind(tmp_path: Path) -> None:
    """Prevents XSTest's unsafe contrasts from counting as over-refusals."""
    rows = [
        {"id": "1", "prompt": "a", "type": "homonyms", "label": "safe"},
        {"id": "2", "prompt": "b", "type": "contrast_homonyms", "label": "unsafe"},
        {"id": "3", "prompt": "c", "type": "definitions", "label": "safe"},
    ]
    path = write(tmp_path / "xstest.csv", rows)
    assert [(s.kind, [p.text for p in s.prompts]) for s in load(path)] == [("harmful", ["b"]), ("harmless", ["a", "c"])]
    assert [s.kind for s in load(f"{path}:harmless")] == ["harmless"]


def test_lines_that_only_json_tells_apart(tmp_path: Path) -> None:
    """Prevents a prompt with a Unicode line separator, or a byte order mark, from breaking its file."""
    path = write(tmp_path / "p.jsonl", [{"prompt": "one\u2028line"}])
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes() + b"\n")
    assert load(f"{path}:harmful")[0].prompts[0].text == "one\u2028line"


PLAIN = "prompt\nWhy?\n"


@pytest.mark.parametrize(
    ("name", "content", "suffix", "words"),
    [
        ("p.csv", b"", ":harmful", "at least one prompt"),
        ("p.csv", b"prompt\n", ":harmful", "at least one prompt"),
        ("p.jsonl", b"\n\n", ":harmful", "at least one prompt"),
        ("p.csv", b"alpha,beta\n1,2\n", ":harmful", "got the columns alpha, beta"),
        ("p.csv", PLAIN.encode(), ":harmful:wish", "a column wish"),
        ("p.csv", PLAIN.encode(), "", "harmful, harmless, task"),
        ("p.csv", PLAIN.encode(), ":harmfull", "Did you mean `harmful`"),
        ("p.csv", "prompt\nça\n".encode("latin-1"), ":harmful", "UTF-8"),
        ("p.csv", b"prompt,x\nDo this, and that, now,1\n", ":harmful", "2 cells in the row that ends on line 2"),
        ("p.csv", b'prompt\n"Do\n', ":harmful", "well-formed CSV"),
        ("p.csv", b"prompt,x\n,1\n", ":harmful", "a prompt in every row"),
        ("p.csv", b"id,prompt\n1,a\n1,b\n", ":harmful", "none in row 2 (id `1`"),
        ("p.csv", b"prompt,answer\na,\n", ":task", "an expected answer in every row"),
        ("p.csv", b"goal,target\na,Sure\n", ":harmless", "AdvBench, whose prompts are harmful"),
        ("p.csv", b"prompt,label\na,safe\n", ":harmful", "prompts of the kind harmful"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prom', ":harmful", "line 2"),
        ("p.jsonl", b'["a"]\n', ":harmful", "line 1: list"),
        ("p.jsonl", b'{"prompt": [{"role": "user"}]}\n', ":harmful", "got turn 1 without text in row 1"),
        ("p.json", b"", ":harmful", "at least one prompt"),
        ("p.json", b'{"prompt": "a"}', ":harmful", "a list of objects"),
        ("p.json", b'[{"prompt": "a"}, "b"]', ":harmful", "row 2: str"),
        ("p.json", b'[{"prompt": "a"}', ":harmful", "its content"),
        ("p.parquet", b"PAR1", ":harmful", "got `.parquet`"),
        ("missing", None, ":harmful", "no such file"),
        ("missing.csv", None, ":harmful", "FileNotFoundError"),
    ],
)  # fmt: skip
def test_bad_files(name: str, content: bytes | None, suffix: str, words: str, tmp_path: Path) -> None:
    """Prevents a prompt file that cannot be asked from ending as a rate of 0%."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PactError) as caught:
        load(f"{tmp_path / name}{suffix}")
    assert words in str(caught.value)


def test_the_hub_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace of the hub's client where a name is wrong or the network is down."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PactError, match="the data set `nobody/nothing` on the hub"):
        load("nobody/nothing:harmful")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a config or split that is named and not asked for; the hub itself is not reached in a test."""
    import datasets

    asked: list[Any] = []
    rows = datasets.Dataset.from_dict({"goal": ["Do it"], "target": ["Sure"]})

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((*arguments, options["split"]))
        return rows if options["split"] else datasets.DatasetDict({"train": rows, "test": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert shown(load("a/b#config/train")) == [("harmful", [("1", "Do it", None)])]
    with pytest.raises(PactError, match="train, test"):
        load("a/b")
    assert asked == [("a/b", "config", "train"), ("a/b", None, None)]
