"""Where people look: the rates among what the trainer logs, the model card, and what is pushed to the hub."""

from __future__ import annotations

import hashlib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers import TrainerCallback

from pact_plugins import PactCallback
from pact_plugins.storage import files
from tests import tiny
from tests.contract.hosts import HOSTS, Trainer, config, model_of

pytestmark = pytest.mark.usefixtures("brief_runs")


class Tracker(TrainerCallback):
    """Takes what is logged until it hears of the end, as MLflow's and trackio's do."""

    def __init__(self) -> None:
        self.open, self.taken = True, dict[str, Any]()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_kw: Any) -> None:
        if self.open:
            self.taken |= logs

    def on_train_end(self, *_args: Any, **_kw: Any) -> None:
        self.open = False


@pytest.mark.parametrize("host", HOSTS)
def test_trackers_are_given_the_rates(host: Trainer, tmp_path: Path) -> None:
    """Prevents rates that come when trackers have closed, that are others than the report's, or that nobody sees."""
    trainer, tracker = host(tiny.llama(), tmp_path), Tracker()
    trainer.add_callback(tracker)
    trainer.add_callback(PactCallback(trainer, config(tmp_path, eval={"limit": 3, "max_new_tokens": 4})))
    trainer.train()
    assert not tracker.open
    ours = {name: value for name, value in tracker.taken.items() if name.startswith("pact_eval/")}
    found = files.read(tmp_path / "out" / "pact_evaluation" / "evaluation.json")["measurements"]
    assert len(ours) == 2 * len(found)
    for m in found:
        place = [m["prompt_set"], m["kind"], *filter(None, [m["judge"]]), m["measure"]]
        for when, rate in (("before", m["against"]), ("after", m["model"])):
            assert ours[f"pact_eval/{'/'.join(place)}_{when}"] == rate["share"]
    log = files.read(tmp_path / "out" / "pact_history.json")["log"]
    assert any("pact_eval/held-out/harmful/stance/refusal_rate_after" in entry for entry in log)


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("host", HOSTS)
def test_what_is_pushed_has_evidence_report_and_a_card(
    host: Trainer, adapter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents weights on the hub without what was found of them, and a digest of other evidence."""
    trainer = host(model_of(adapter), tmp_path, save_strategy="steps", save_steps=1)
    trainer.add_callback(PactCallback(trainer, config(tmp_path, eval={"limit": 3, "max_new_tokens": 4})))
    trainer.train()
    pushed: list[str] = []

    def upload(_self: Any, *, folder_path: str, ignore_patterns: list[str], **_kw: Any) -> None:
        names = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        pushed.extend(name for name in names if not any(fnmatch(name, pattern) for pattern in ignore_patterns))

    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr("transformers.trainer.upload_folder", lambda **kw: upload(None, **kw), raising=False)
    trainer.hub_model_id = "me/mine"
    trainer.push_to_hub()
    assert {"README.md", "pact_evidence.json", "pact_safety_tokens.json", "pact_report/report.json"} <= {*pushed}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.count("## Safety") == 1
    assert "refusal rate (stance)" in card.replace("\\", "")
    assert hashlib.sha256((tmp_path / "out" / "pact_evidence.json").read_bytes()).hexdigest() in card
