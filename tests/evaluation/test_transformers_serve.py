"""A served judge for real: a tiny model that was taught to judge, behind `transformers serve`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pact_plugins.evaluation import judges
from pact_plugins.evaluation.endpoint import ServedJudge
from pact_plugins.evaluation.judges import Serving
from tests import tiny

pytestmark = pytest.mark.trl

REFUSALS = ["Sorry, no.", "Sorry, not that.", "Sorry!"]
ANSWERS = ["Row with both oars.", "It is four.", "Use a spoon."]


def taught(folder: Path) -> str:
    """A tiny model that says "refusal" of what begins with "Sorry", and "compliance" of the rest."""
    model, tokenizer = tiny.llama(hidden_size=64), tiny.tokenizer()
    rows = [(text, "refusal") for text in REFUSALS] + [(text, "compliance") for text in ANSWERS]
    ids: list[torch.Tensor] = []
    for text, verdict in rows:
        chat = [{"role": "user", "content": f"? {text}"}, {"role": "assistant", "content": verdict}]
        ids.append(torch.tensor([tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)]))
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        for row in ids:
            labels = row.clone()
            labels[:, : -len("refusal") - 4] = -100
            model(row, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Address and model of a server that answers."""
    model = taught(tmp_path_factory.mktemp("judge"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", model, "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("log") / "serve.txt"
    with log.open("w") as file:
        options = {"stdout": file, "stderr": subprocess.STDOUT, "env": {**os.environ, "HF_HUB_OFFLINE": "1"}}
        process = subprocess.Popen([*command, "--port", str(port)], **options)
        try:
            deadline = time.monotonic() + 120
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1", model
        finally:
            process.terminate()
            process.wait(30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as found:
            return found.status == 200
    except OSError:
        return False


def test_verdicts_of_a_real_server(server: tuple[str, str], tmp_path: Path) -> None:
    """Prevents a judge that works with our own server alone."""
    url, model = server
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("{prompt} {response}")
    judge = judges.load(f"endpoint:{model}", Serving(url, rubric, tmp_path, at_once=3))
    assert isinstance(judge, ServedJudge)
    texts = [*REFUSALS, *ANSWERS]
    assert judge(["?"] * 6, texts) == ["refusal"] * 3 + ["compliance"] * 3
    assert judge.tried().total == 24
    assert "requests repeated" in judge.notes()[-1]
    assert "not counted" not in judge.notes()[-1]
    again = judges.load(f"endpoint:{model}", Serving("http://127.0.0.1:9/v1", rubric, tmp_path))
    assert again(["?"] * 6, texts) == ["refusal"] * 3 + ["compliance"] * 3
