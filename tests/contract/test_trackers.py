"""Where people look: the rates among what the trainer logs, the model card, and what is pushed to the hub."""

from __future__ import annotations

import hashlib
import html
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainerCallback

from pact_plugins import PactCallback
from pact_plugins.storage import files
from tests import tiny
from tests.brief import few_prompts
from tests.contract.hosts import HOSTS, Trainer, config, model_of

ENDINGS = ("html", "md", "json")


class Tracker(TrainerCallback):
    """Takes what is logged until it hears of the end, as MLflow's and trackio's do."""

    def __init__(self) -> None:
        self.open, self.taken = True, dict[str, Any]()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_kw: Any) -> None:
        if self.open:
            self.taken |= logs

    def on_train_end(self, *_args: Any, **_kw: Any) -> None:
        self.open = False


@pytest.mark.usefixtures("brief_runs")
@pytest.mark.parametrize("host", HOSTS)
def test_trackers_are_given_the_rates(host: Trainer, tmp_path: Path) -> None:
    """Prevents rates that come when trackers have closed, that are others than the report's, or that nobody sees."""
    trainer, tracker = host(tiny.llama(), tmp_path), Tracker()
    trainer.add_callback(tracker)
    trainer.add_callback(PactCallback(trainer, config(tmp_path, eval={"limit": 3, "max_new_tokens": 4})))
    trainer.train()
    assert not tracker.open
    ours = {name: value for name, value in tracker.taken.items() if name.startswith("pact_eval/")}
    found = files.read(tmp_path / "out" / "_pact_evaluation" / "evaluation.json")["measurements"]
    assert len(ours) == 2 * len(found)
    for m in found:
        place = [m["prompt_set"], m["kind"], *filter(None, [m["judge"]]), m["measure"]]
        for when, rate in (("before", m["against"]), ("after", m["model"])):
            assert ours[f"pact_eval/{'/'.join(place)}_{when}"] == rate["share"]
    log = files.read(tmp_path / "out" / "pact_history.json")["log"]
    assert any("pact_eval/held-out/harmful/stance/refusal_rate_after" in entry for entry in log)


@pytest.mark.usefixtures("brief_runs")
@pytest.mark.parametrize("host", HOSTS)
def test_tensorboard_has_the_rates(host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents names or values that a real tracker does not take, or takes otherwise."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = host(tiny.llama(), tmp_path, report_to=["tensorboard"])
    trainer.add_callback(PactCallback(trainer, config(tmp_path, eval={"limit": 3, "max_new_tokens": 4})))
    trainer.train()
    events = accumulator.EventAccumulator(str(tmp_path / "events")).Reload()
    shown = {tag: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"] if "/pact_eval/" in tag}
    log = files.read(tmp_path / "out" / "pact_history.json")["log"]
    rates = {name: value for entry in log for name, value in entry.items() if name.startswith("pact_eval/")}
    assert {f"train/{name}": pytest.approx(value) for name, value in rates.items()} == {
        tag: event.value for tag, event in shown.items()
    }
    assert {event.step for event in shown.values()} == {2}


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("host", HOSTS)
def test_what_is_pushed_has_evidence_report_and_a_card_and_no_answers(
    host: Trainer, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents weights on the hub without what was found of them, and what models said to harmful prompts with them."""
    few_prompts(monkeypatch)
    trainer = host(model_of(adapter), tmp_path, save_strategy="steps", save_steps=1, eval_data=tiny.conversations(4))
    asked = {"limit": 3, "max_new_tokens": 16, "task": "split"}
    trainer.add_callback(PactCallback(trainer, config(tmp_path, eval=asked)))
    trainer.train()
    pushed: dict[str, bytes] = {}

    def upload(_self: Any, *, folder_path: str, ignore_patterns: list[str], **_kw: Any) -> None:
        paths = {p.relative_to(folder_path).as_posix(): p for p in Path(folder_path).rglob("*") if p.is_file()}
        pushed.update(
            {name: paths[name].read_bytes() for name in filter_repo_objects(paths, ignore_patterns=ignore_patterns)}
        )

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr("transformers.trainer.upload_folder", lambda **kw: upload(None, **kw), raising=False)
    trainer.hub_model_id = "me/mine"
    trainer.push_to_hub()
    expected = {
        "README.md",
        "pact_evidence.json",
        "pact_safety_tokens.json",
        *(f"pact_report/report.{e}" for e in ENDINGS),
    }
    assert expected <= pushed.keys()
    card = pushed["README.md"].decode()
    assert card.count("## Safety") == 1
    assert "refusal rate (stance)" in card.replace("\\", "")
    assert hashlib.sha256(pushed["pact_evidence.json"]).hexdigest() in card
    rows = map(json.loads, (tmp_path / "out" / "_pact_evaluation" / "verdicts.jsonl").open())
    answers = {html.escape(row["response"].strip()) for row in rows} - {""}
    texts = [content.decode(errors="replace") for content in pushed.values()]
    assert not [answer for answer in answers if len(answer) > 8 and any(answer in text for text in texts)]
    whole = (tmp_path / "out" / "_pact_evaluation" / "report.html").read_text()
    assert "<h2>Answers before and after</h2>" in whole
    assert "_pact_evaluation/report.html" in pushed["pact_report/report.html"].decode()
