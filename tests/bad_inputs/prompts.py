"""Prompt sets that cannot be read, or must not be asked."""

from __future__ import annotations

from typing import Any

from pact_plugins.evaluation.prompts import load
from pact_plugins.evaluation.run import prompt_sets_of
from tests.bad_inputs.case import BadInput, given, written


def _file(name: str, content: str | bytes, message: str, suffix: str = ".csv", kind: str = ":harmful") -> BadInput:
    file = f"prompts{suffix}"
    return BadInput(name, written(content, file, lambda path: load(f"{path}{kind}")), message)


def _row(name: str, content: str | bytes, message: str, kind: str = ":harmful") -> BadInput:
    return _file(name, content, message, ".jsonl", kind)


def _load(name: str, description: str, message: str) -> BadInput:
    return BadInput(name, given(load, description), message)


def _sets(*descriptions: str) -> Any:
    return given(prompt_sets_of, descriptions, None)


INPUTS = [
    BadInput(
        "No such prompt file",
        lambda folder: load(f"{folder / 'prompts.csv'}:harmful"),
        r"prompts\.csv; got FileNotFound",
    ),
    BadInput(
        "A folder in place of a prompt file", lambda folder: load(f"{folder}:harmful"), r"\.csv, \.jsonl, \.json in"
    ),
    _file("A prompt file of an unknown kind", "a prompt", r"prompts\.txt; got `\.txt`", ".txt"),
    _file("An empty prompt file", "", r"at least one prompt in .*prompts\.csv; got none"),
    _file("A header without rows", "prompt\n", r"at least one prompt in .*prompts\.csv; got none"),
    _file(
        "No column with prompts",
        "id,words\n1,Do it\n",
        r"a column messages .* in .*prompts\.csv; got the columns id, words",
    ),
    _file("A column that is not there", "prompt\nDo it\n", r"a column wish in .*prompts\.csv", kind=":harmful:wish"),
    _file(
        "A column that stands twice", "prompt,prompt\na,b\n", r"each column once in .*prompts\.csv; got prompt, prompt"
    ),
    _file("A prompt file that is not in UTF-8", b"prompt\nH\xe9l\xe9\n", r"in UTF-8 in .*prompts\.csv; got"),
    _file("A quote that is not closed", 'prompt\n"Do it\n', r"a well-formed CSV file in .*prompts\.csv"),
    _file("A comma that splits a prompt", "id,prompt\n1,Do it, now\n", r"2 cells in the row that ends on line 2"),
    _file("A line that is no JSON", "{", r"JSON in .*prompts\.json; got its content", ".json"),
    _file("An object in place of a list", "{}", r"a list of objects in .*prompts\.json; got a dict", ".json"),
    _file("Brackets without end", "[" * 100_000, r"JSON in .*prompts\.json; got .*recursion", ".json"),
    _file("A number of thousands of digits", f"[{'1' * 5000}]", r"JSON in .*prompts\.json; got .*digits", ".json"),
    _row("A row that is no object", '["Do it"]', r"JSON objects in .*prompts\.jsonl; got line 1: list"),
    _row("A list in place of a prompt", '{"prompt": ["Do it"]}', r"`prompt` in .*prompts\.jsonl messages.*turn 1 that"),
    _row(
        "A conversation without a user",
        '{"messages": [{"role": "assistant", "content": "Hello"}]}',
        r"`messages` in .*prompts\.jsonl messages.*; got roles assistant in row 1",
    ),
    _row(
        "A turn without text",
        '{"messages": [{"role": "user", "content": null}]}',
        r"`messages` in .*prompts\.jsonl messages.*; got turn 1 without text in row 1",
    ),
    _row(
        "A task whose conversation has no answer",
        '{"messages": [{"role": "user", "content": "2 + 2?"}]}',
        r"an expected answer in every row of .*prompts\.jsonl; got none in row 1",
        ":task",
    ),
    _row("A truth value in place of a prompt", '{"prompt": true}', r"`prompt` in .*prompts\.jsonl; got a bool"),
    _row("A prompt without text", '{"prompt": " "}', r"a prompt in every row of .*prompts\.jsonl; got none in row 1"),
    _row(
        "A prompt that is missing", '{"prompt": NaN}', r"a prompt in every row of .*prompts\.jsonl; got none in row 1"
    ),
    _row("Half a character", '{"prompt": "\\ud83d"}', r"UTF-8 under `prompt` in .*prompts\.jsonl; got .*'\\ud83d'"),
    _row(
        "An id that stands twice",
        '{"id": 1, "prompt": "a"}\n{"id": 1, "prompt": "b"}',
        r"an id of its own in every row of .*prompts\.jsonl; got none in row 2",
    ),
    _row("A task without an answer", '{"prompt": "2 + 2?"}', r"an expected answer in every row of .*", ":task"),
    _row("A kind that is not told", '{"prompt": "Do it"}', r"whether the prompts of .*prompts\.jsonl are harmful", ""),
    _row("A kind that is misspelt", '{"prompt": "Do it"}', r"one of the kinds.*Did you mean `harmful`", ":harmfull"),
    _row("A kind that the file contradicts", '{"goal": "a", "target": "b"}', r"harmless in .*AdvBench", ":harmless"),
    _load("A kind that a shipped set does not have", "shipped:task", r"the kind task in shipped; got prompts that are"),
    _load(
        "Neither a file nor a data set",
        "my prompts",
        r"`shipped`, `held-out`, `held-out-how-to`, a prompt file.*; got `my prompts`",
    ),
    _load(
        "A data set that cannot be reached", "nobody/nothing:harmful", r"the data set `nobody/nothing` on the hub; got"
    ),
    BadInput(
        "One prompt set twice", _sets("shipped", "shipped:harmful"), r"each of them once; got shipped \(harmful\) again"
    ),
    BadInput("No prompt set", _sets(), r"at least one prompt set.*; got none"),
]
