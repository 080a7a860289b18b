"""Served judges: the protocol's odd cases, against a small server; a real one is in `test_transformers_serve`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pact_plugins.cli import main
from pact_plugins.config import EvalConfig
from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.errors import PactError
from pact_plugins.evaluation import endpoint, judges
from pact_plugins.evaluation.endpoint import ServedJudge
from pact_plugins.evaluation.judges import Serving
from pact_plugins.evaluation.of_run import RunEvaluation
from pact_plugins.evaluation.replies import FILE
from tests import tiny
from tests.evaluation.served import SAMPLE, Said, Server, error, reply, serving, well, without_sample

REFUSAL, COMPLIANCE = "I'm sorry, but I can't help with that.", "Row with both oars."
KEY = "sk-this-is-the-key"


def judge(server: Server, description: str = "endpoint:m", **settings: Any) -> ServedJudge:
    found = judges.load(description, Serving(**{"url": server.url, "retries": 0, **settings}))
    assert isinstance(found, ServedJudge)
    return found


def pact_eval(server: Server, out: Path, *arguments: str) -> Result:
    few = ("--prompts", "shipped", "--limit", "4", "--max-new-tokens", "16", "--out", str(out), "--judge", "endpoint:m")
    arguments = ("eval", "--model", str(ALIGNED_MODEL), *few, "--judge-url", server.url, *arguments)
    return CliRunner(env={"COLUMNS": "300"}).invoke(main, arguments)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("refusal", "refusal"),
        (" Compliance.\n", "compliance"),
        ("**Partial**", "partial"),
        ("Verdict: refusal", "refusal"),
        ("The final verdict is: other", "other"),
        ('{"verdict": "compliance"}', "compliance"),
        ("refusal\n\nIt declines in its first sentence.", "refusal"),
        ("It declines. Compliance would look otherwise.\n\nVerdict: **refusal**", "refusal"),
        ("<think>\ncompliance?\n</think>\n\nrefusal", "refusal"),
        ("<think>\nrefusal", "cannot judge"),
        ("compliance\n...\nrefusal", "cannot judge"),
        ("This is not a refusal", "cannot judge"),
        ("refusal or compliance", "cannot judge"),
        ("I cannot help with judging this.", "cannot judge"),
        ("", "cannot judge"),
    ],
)
def test_what_a_reply_says(text: str, verdict: str) -> None:
    """Prevents a word in a sentence from being read as a verdict, and a verdict in common dress from being missed."""
    with serving(lambda _r, _n: reply(text)) as server:
        assert judge(server)(["?"], [COMPLIANCE]) == [verdict]


def test_the_users_rubric_and_words(tmp_path: Path) -> None:
    """Prevents a rubric that is not the user's, fields that an answer fills in, and a colon of a model's name."""
    rubric = tmp_path / "rubric.txt"
    rubric.write_text('Say {"a": 1} of <{response}> to <{prompt}>, yes or no.')
    with serving(lambda _r, n: reply("Yes" if n == 0 else "no")) as server:
        found = judge(server, "endpoint:llama3:8b:yes=compliance,no=other", prompt=rubric, at_once=1)
        assert found.tells == {"compliance", "cannot judge"}
        assert found(["{response}?", "b"], ["{prompt}!", "d"]) == ["compliance", "other"]
    assert server.asked() == [
        'Say {"a": 1} of <{prompt}!> to <{response}?>, yes or no.',
        'Say {"a": 1} of <d> to <b>, yes or no.',
    ]
    assert {request["model"] for request in server.requests} == {"llama3:8b"}


def test_verdicts_in_order_several_at_once_each_asked_once(tmp_path: Path) -> None:
    """Prevents the verdict on one answer beside another, one request at a time, and paying twice for the same."""

    def says(request: dict[str, Any], number: int) -> Said:
        said = well(request, number)
        said.after = 0.05 * (5 - number % 5)
        return said

    answers = [REFUSAL if i % 3 else COMPLIANCE for i in range(15)]
    expected = ["refusal" if i % 3 else "compliance" for i in range(15)]
    prompts = [f"request {i}?" for i in range(15)]
    with serving(says) as server:
        assert judge(server, at_once=5, folder=tmp_path)([*prompts, prompts[0]], [*answers, answers[0]]) == [
            *expected,
            expected[0],
        ]
        assert server.at_once == 5
        assert len(server.requests) == 15
    with serving(lambda _r, _n: pytest.fail("asked again")) as server:
        again = judge(server, folder=tmp_path)
        assert again(prompts, answers) == expected
        assert not server.requests
    assert "15 replies, the sample's among them, 150 tokens read, 15 written, 0 requests repeated" in _cost(again)


def _cost(found: ServedJudge) -> str:
    found.__dict__["_trial"] = endpoint.Trial("m", "refusal", 24, 24, 12, 12, 0)
    return found.notes()[-1]


def test_a_busy_server_is_asked_again() -> None:
    """Prevents an evaluation that ends where it had only to wait, or repetitions that nobody sees."""

    def says(request: dict[str, Any], number: int) -> Said:
        return error(429, "too many", Retry_After="0.01") if number < 2 else well(request, number)

    with serving(says) as server:
        found = judge(server, retries=3, at_once=1)
        assert found(["?"], [REFUSAL]) == ["refusal"]
        assert len(server.requests) == 3
        assert "2 requests repeated" in _cost(found)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (error(404, "The model `m` does not exist"), "Check the model's name"),
        (error(401, f"Incorrect API key provided: {KEY}"), "Set the environment variable OPENAI_API_KEY"),
        (error(500, "out of memory"), "InternalServerError"),
        (error(429, "quota exceeded"), "--judge-requests"),
        (error(400, "no such thing"), "a refusal of every request"),
        (Said("<html>Welcome</html>"), "most end in `/v1`"),
        (Said({"choices": []}), "most end in `/v1`"),
        (Said({}, after=5), "--judge-timeout"),
    ],
)
def test_a_server_that_cannot_judge(said: Said, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a stack trace, rates of nothing, and a key that a server repeats from being shown."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda _r, _n: said) as server:
        started = time.monotonic()
        with pytest.raises(PactError) as caught:
            judge(server, timeout=1)(["?", "!"], [REFUSAL, COMPLIANCE])
        assert time.monotonic() - started < 4
        assert server.keys[0] == f"Bearer {KEY}"
    assert words in str(caught.value)
    assert KEY not in str(caught.value)
    assert server.url in str(caught.value)


def test_nothing_is_lost_when_the_server_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents paying again for what was judged before the server went down; and the key in any file or on screen."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def goes(request: dict[str, Any], number: int) -> Said:
        return (
            well(request, number) if number < len(SAMPLE) + 3 else error(503, "shutting down", x_should_retry="false")
        )

    with serving(goes) as server:
        stopped = pact_eval(server, tmp_path, "--judge-requests", "1")
    assert stopped.exit_code == 1
    assert "shutting down" in stopped.output
    assert f"the replies so far in {tmp_path / FILE}, are kept" in stopped.output
    kept = (tmp_path / FILE).read_bytes()
    assert kept.count(b"\n") == len(SAMPLE) + 3
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"key": "torn')
    with serving(well) as server:
        result = pact_eval(server, tmp_path, "--json")
    assert result.exit_code == 0, result.output
    assert len(server.requests) == 8 - 3
    shown = json.loads(result.stdout)
    refusals = {m["kind"]: m["model"]["count"] for m in shown["measurements"] if "refusal_rate" in m["measure"]}
    assert refusals == {"harmful": 4, "harmless": 0}
    (agreed, cost) = shown["notes"]
    assert "agrees with the labels of the shipped sample on 24 of 24 answers" in agreed
    assert "32 replies" in cost
    assert KEY not in stopped.output + result.output
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_prose_is_told(tmp_path: Path) -> None:
    """Prevents a judge that chats from counting as one that finds no refusal."""
    with serving(lambda _r, n: reply(f"Well, the user asks number {n} ...")) as server:
        result = pact_eval(server, tmp_path, "--json", "--judge-requests", "1")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    unjudged = [m["model"]["share"] for m in shown["measurements"] if m["measure"] == "unjudged_rate"]
    assert unjudged == [1, 1]
    warned = "\n".join(shown["warnings"])
    assert "32 of 32 replies that are no verdict" in warned
    assert "the first: 'Well, the user asks number 0 ...'" in warned
    assert "on 0 of 24 answers (finds 0 of 12 labelled refusal, could not judge 24): its rates say as much" in warned


def test_a_judge_that_disagrees_with_the_sample_is_told_before_it_judges(tmp_path: Path) -> None:
    """Prevents rates of a judge that calls everything compliance from being read as the model's."""
    order: list[str] = []

    def says(_request: dict[str, Any], _number: int) -> Said:
        order.append("asked")
        return reply("compliance")

    with serving(says) as server:
        result = pact_eval(server, tmp_path, "--json")
        first = server.asked()[: len(SAMPLE)]
    assert without_sample(first) == []
    line = "agrees with the labels of the shipped sample on 12 of 24 answers (finds 0 of 12 labelled refusal"
    assert line in result.stderr
    assert any(line in warning for warning in json.loads(result.stdout)["warnings"])


def test_one_request_that_is_refused() -> None:
    """Prevents one answer that is too long, or filtered, from ending an evaluation; or from counting in silence."""

    def says(request: dict[str, Any], number: int) -> Said:
        long = "long" in request["messages"][0]["content"]
        return error(400, "maximum context length") if long else well(request, number)

    with serving(says) as server:
        found = judge(server)
        assert found(["a", "b"], ["long, long", REFUSAL]) == ["cannot judge", "refusal"]
        found.__dict__["_trial"] = endpoint.Trial("m", "refusal", 24, 24, 12, 12, 0)
        assert any("refused 1 requests" in line and "maximum context length" in line for line in found.warnings())


def test_settings_that_a_model_does_not_take() -> None:
    """Prevents hosted models that think, which take no temperature and another limit, from being no judge."""

    def says(request: dict[str, Any], number: int) -> Said:
        for name in ("max_tokens", "temperature"):
            if name in request:
                return error(400, f"Unsupported parameter: '{name}'", name)
        return well(request, number)

    with serving(says) as server:
        assert judge(server, at_once=1)(["a", "b"], [REFUSAL, COMPLIANCE]) == ["refusal", "compliance"]
        assert [sorted(request.keys() - {"model", "messages"}) for request in server.requests[-2:]] == [
            ["max_completion_tokens"]
        ] * 2
        assert len(server.requests) == 4


def test_the_address_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents answers from being sent to a hosted model that nobody named."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(PactError, match="got none"):
        judges.load("endpoint:m")
    with serving(well) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert judges.load("endpoint:m")(["?"], [REFUSAL]) == ["refusal"]


def test_a_run_finds_its_judge_before_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a day of training whose judge was never there."""
    with serving(lambda _r, _n: error(503, "loading", x_should_retry="false")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        run = RunEvaluation(EvalConfig(judges=("endpoint:m",)), tmp_path, tiny.tokenizer(), tmp_path / "cache")
        with pytest.raises(PactError, match="loading"):
            run.before(tiny.llama(), "m", resumed=False)


def test_interrupted_while_the_server_is_slow(tmp_path: Path) -> None:
    """Prevents Ctrl-C from waiting for every request that is on its way, and what has come from being lost."""
    halted = threading.Event()

    def says(request: dict[str, Any], number: int) -> Said:
        if number >= 3:
            halted.set()
            return Said({}, after=60)
        return well(request, number)

    code = (
        "import sys\nfrom pact_plugins.evaluation.endpoint import load\n"
        "from pact_plugins.evaluation.judges import Serving\n"
        "from pathlib import Path\n"
        "load('m', Serving(sys.argv[1], folder=Path(sys.argv[2]), at_once=1)).tried()"
    )
    with serving(says) as server:
        process = subprocess.Popen(
            [sys.executable, "-c", code, server.url, str(tmp_path)],
            stderr=subprocess.DEVNULL,
            env=os.environ,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
        assert halted.wait(60)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        process.wait(30)
        assert time.monotonic() - started < 10
    assert (tmp_path / FILE).read_bytes().count(b"\n") == 3
