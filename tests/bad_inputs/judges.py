"""Judges that do not exist, cannot be loaded, or say something else than a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pact_plugins.evaluation import judge_prompts, judges
from pact_plugins.evaluation.benchmark_judges import harmbench_verdict
from pact_plugins.evaluation.judges import user_function
from pact_plugins.evaluation.model_judges import guard_verdict
from tests import tiny
from tests.bad_inputs.case import BadInput, given, written


def _load(name: str, description: str, message: str) -> BadInput:
    return BadInput(name, given(judges.load, description), message)


def _of_the_tiny_model(before: str, behind: str = "") -> Callable[[Path], Any]:
    return lambda folder: judges.load(f"{before}:{tiny.save(folder)}{behind}")


def _no_verdict(_folder: Path) -> Any:
    return judges.load("operator:concat")(["Do it. "], ["Sure."])


def _no_template(folder: Path) -> Any:
    path = tiny.save(folder)
    (folder / "chat_template.jinja").unlink()
    return judges.load(f"llama-guard:{path}")(["Do it."], ["Sure."])


def _templates(content: Any, judge: str) -> Callable[[Path], Any]:
    def act(folder: Path) -> Any:
        path = folder / "judge_templates.json"
        path.write_text(json.dumps(content))
        return judges.load(f"{judge}:{path}")

    return act


_A_FUNCTION = r"a function `module:function`, under `{}`; got {}"

INPUTS = [
    _load("A misspelt judge", "openning", r"a judge: .*Did you mean `opening`"),
    _load("A judge that does not exist", "oracle", r"a judge: .*; got `oracle`"),
    _load("No judge", "", r"a judge: .*; got ``"),
    _load("A rule with something behind its name", "opening:now", r"a judge: .*; got `opening:now`"),
    _load("A module that is not there", "no_such_module:judge", _A_FUNCTION.format("no_such.*", "ModuleNotFoundError")),
    _load("A function that is not there", "json:judge", _A_FUNCTION.format("json:judge", "AttributeError")),
    _load("Something else than a function", "json:__name__", _A_FUNCTION.format(".*", "__name__ is a str")),
    BadInput("A scorer that is not there", given(user_function, "json:no", "a scorer"), r"a scorer, or .*`json:no`"),
    BadInput(
        "A function that gives no verdict", _no_verdict, r"`operator:concat` to return one of .*; got 'Do it\. Sure"
    ),
    _load("A classifier without a path", "classifier", r"a classifier's path"),
    _load("A classifier that is not there", "classifier:/nowhere/judge", r"`/nowhere/judge`; got"),
    BadInput("A classifier whose labels say nothing", _of_the_tiny_model("classifier"), r"LABEL_0=\?, LABEL_1=\?"),
    BadInput(
        "A classifier with a label that it does not have",
        _of_the_tiny_model("classifier", ":LABEL_0=other,LABEL_1=refusal,LABEL_2=compliance"),
        r"each label of .*LABEL_2=compliance",
    ),
    BadInput("A guard without a chat template", _no_template, r"a guard model whose chat template.*; got ValueError"),
    BadInput(
        "A guard that chats", given(guard_verdict, "It is safe to say"), r"Llama Guard.*; got 'It is safe to say'"
    ),
    BadInput("A classifier that chats", given(harmbench_verdict, "maybe"), r"HarmBench's classifier; got 'maybe'"),
    _load("StrongREJECT without its prompt", "strongreject:/a/model", r"the prompt of `strongreject`.*; got none"),
    _load(
        "A file of prompts that is not there",
        "strongreject:/a/b.json",
        r"`strongreject` in .*b\.json; got FileNotFoundError",
    ),
    BadInput(
        "A file of other prompts", _templates({"a": "b"}, "strongreject"), r"no text under `strongreject_finetuned`"
    ),
    BadInput("A file of prompts that is a list", _templates([], "strongreject"), r"judge_templates\.json; got a list"),
    BadInput(
        "A HarmBench classifier of another type",
        written('{"harmbench": "{behavior} {generation}"}', "a.json", lambda p: judge_prompts.harmbench(p, "qwen2")),
        r"`harmbench` in .*a\.json; got prompts for no `qwen2`",
    ),
    BadInput(
        "A prompt without its fields",
        _templates({"strongreject_finetuned": "{response}"}, "strongreject"),
        r"fields \['response'\]",
    ),
]
