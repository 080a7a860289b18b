"""Judges that do not exist, cannot be loaded, or say something else than a verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pact_plugins.evaluation import judges, scorers
from pact_plugins.evaluation.judges import Serving
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


def _served(description: str = "endpoint:m", **settings: Any) -> Callable[[Path], Any]:
    return given(judges.load, description, Serving(**{"url": "http://127.0.0.1:9/v1", "retries": 0, **settings}))


def _nobody_listens(folder: Path) -> Any:
    return _served(folder=folder)(folder)(["Do it."], ["Sure."])


def _rubric(text: str) -> Callable[[Path], Any]:
    return written(text, "rubric.txt", lambda path: _served(prompt=path)(path))


_A_FUNCTION = r"a function `module:function`, under `{}`; got {}"

INPUTS = [
    _load("A misspelt judge", "openning", r"a judge: .*Did you mean `opening`"),
    _load("A judge that does not exist", "oracle", r"a judge: .*; got `oracle`"),
    _load("No judge", "", r"a judge: .*; got ``"),
    _load("A rule with something behind its name", "opening:now", r"a judge: .*; got `opening:now`"),
    _load("A module that is not there", "no_such_module:judge", _A_FUNCTION.format("no_such.*", "ModuleNotFoundError")),
    _load("A function that is not there", "json:judge", _A_FUNCTION.format("json:judge", "AttributeError")),
    _load("Something else than a function", "json:__name__", _A_FUNCTION.format(".*", "__name__ is a str")),
    BadInput("A scorer that is not there", given(scorers.load, "json:no"), r"a scorer, or .*`json:no`"),
    BadInput("A misspelt scorer", given(scorers.load, "last_number"), r"a scorer: .*Did you mean `last-number`"),
    BadInput("A scorer without its pattern", given(scorers.load, "regex"), r"a scorer: .*; got `regex`"),
    BadInput("A pattern that is none", given(scorers.load, "regex:("), r"a regular expression .*, not `\(`; got"),
    BadInput(
        "A number that is not expected",
        given(scorers.last_number, "?", "4", "four"),
        r"a number in every expected answer.*; got 'four'",
    ),
    BadInput(
        "A score beyond 1",
        given(scorers.score, lambda _p, _r, _e: 7, "?", "4", "4"),
        r"a number from 0 to 1; got 7",
    ),
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
    BadInput("A served judge without a model", _served("endpoint"), r"a model that the server has; got none"),
    BadInput("A served judge without an address", _served(url=" "), r"the address of an OpenAI.*; got ` `"),
    BadInput(
        "A password in the address of a served judge",
        _served(url="http://me:secret@host/v1"),
        r"without a user's name or password in it; got one with them",
    ),
    BadInput(
        "Words of a served judge without a verdict",
        _served("endpoint:llama3:8b:yes=bad,no=other"),
        r"each word of the rubric one of .*; got `yes=bad,no=other`",
    ),
    BadInput("A rubric that is not there", _served(prompt=Path("/nowhere/rubric.txt")), r"rubric\.txt.*FileNotFound"),
    BadInput("A rubric without the answer", _rubric("Is {prompt} bad?"), r"rubric\.txt, .*; got no \{response\}"),
    BadInput(
        "A served judge that is down",
        _nobody_listens,
        r"the judge `m` at http://127.0.0.1:9/v1; got APIConnectionError",
    ),
    BadInput(
        "Replies of judges that are no JSON",
        lambda folder: written("notes\n", "judge_replies.jsonl", lambda path: _nobody_listens(path.parent))(folder),
        r"judge_replies\.jsonl; got in line 1 JSONDecodeError",
    ),
]
