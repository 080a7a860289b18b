"""What every host's runs say of themselves at their end: the report, and the questions before and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from pact_plugins import PactCallback, PactError
from pact_plugins.evaluation.generation import Generation, Speaker
from pact_plugins.evaluation.run import evaluate
from pact_plugins.run.report.files import contents_of
from pact_plugins.storage import files
from tests import tiny
from tests.contract.hosts import HOSTS, LORA, Trainer, axolotl_trainer, config


@pytest.mark.usefixtures("brief_runs")
@pytest.mark.parametrize("broken", ["make_report", "measure_profile"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_report_that_fails_costs_nothing(
    host: Trainer, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prevents an error after the last step, before the host saves the weights; or one that nobody hears of."""

    def fail(*_args: Any, **_kw: Any) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr(f"pact_plugins.run.before_and_after.{broken}", fail)
    trainer = host(tiny.llama(num_hidden_layers=1), tmp_path)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    assert trainer.train().global_step == 2
    assert "no space left" in caplog.text
    assert f"pact report {tmp_path / 'out'}" in caplog.text
    assert [e["step"] for e in files.read(tmp_path / "out" / "pact_history.json")["log"] if "loss" in e] == [1, 2]


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_leaves_a_report_and_its_model_as_it_was(host: Trainer, tmp_path: Path) -> None:
    """Prevents a last look at the model that changes its mode or its weights, or a report of another objective."""
    trainer = host(tiny.llama(num_hidden_layers=1), tmp_path)
    trainer.add_callback(PactCallback(trainer, config(tmp_path, objective="paper")))
    trainer.train()
    assert trainer.model.training
    report = json.loads((tmp_path / "out" / "pact_report" / "report.json").read_text())
    (training,) = report["trainings"]
    assert training["about"]["settings"]["objective"] == "paper"
    assert next(iter(training["about"]["versions"])) == "pact_plugins"
    assert ("axolotl" if host is axolotl_trainer else "trl") in training["about"]["versions"]
    profile = training["profiles"]["training answers"]
    assert max(abs(a - b) for a, b in zip(profile["model"], profile["reference"], strict=True)) > 1e-3
    assert (tmp_path / "out" / "pact_report" / "report.html").exists()


@pytest.mark.parametrize("host", HOSTS)
def test_a_run_is_asked_before_its_first_step_and_after_its_last(
    host: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a report that compares the trained model with itself, also in a run that was resumed."""
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 5.0}
    asked = {"limit": 4, "max_new_tokens": 8}
    found: list[dict[str, Any]] = []
    for resumed in (None, str(tmp_path / "out" / "checkpoint-1")):
        trainer = host(get_peft_model(tiny.llama(), LORA), tmp_path, **settings)
        trainer.add_callback(PactCallback(trainer, config(tmp_path, eval=asked)))
        untouched = Speaker.of("", None, trainer.model, tiny.tokenizer()).fingerprint
        trainer.train(resume_from_checkpoint=resumed)
        found.append(files.read(tmp_path / "out" / "_pact_evaluation" / "evaluation.json"))
        who = (found[-1]["against"], found[-1]["model"])
        assert [(w["model"], w["adapter"]) for w in who] == [("", None), ("", str(tmp_path / "out"))]
        assert found[-1]["against"]["fingerprint"] == untouched
        assert found[-1]["model"]["fingerprint"] != found[-1]["against"]["fingerprint"]
    assert found[0] == found[1]
    page = (tmp_path / "out" / "pact_report" / "report.html").read_text()
    assert "not measured" not in page
    rows = [json.loads(line) for line in (tmp_path / "out" / "_pact_evaluation" / "verdicts.jsonl").open()]
    assert len(rows) == 2 * 2 * 4
    assert {row["run"] for row in rows if row["response"] == rows[0]["response"]} != {"against", "model"}


@pytest.mark.usefixtures("brief_runs")
@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("host", HOSTS[:1])
def test_a_report_takes_answers_of_the_runs_own_weights_alone(host: Trainer, adapter: str, tmp_path: Path) -> None:
    """Prevents the rates of another model, or of a checkpoint, as those of the run; and a refusal of its own."""
    base, out = tiny.save(tmp_path / "base"), tmp_path / "out"
    model: Any = LlamaForCausalLM.from_pretrained(base)
    if adapter == "lora":
        model = get_peft_model(model, LORA)
    trainer = host(model, tmp_path, save_strategy="steps", save_steps=1)
    trainer.add_callback(PactCallback(trainer, config(tmp_path)))
    trainer.train()
    trainer.save_model()

    def report(where: Path, name: str) -> list[str]:
        tiny.tokenizer().save_pretrained(where)
        who = {"model": base, "adapter": str(where)} if adapter == "lora" else {"model": str(where)}
        how: dict[str, Any] = {"generation": Generation(4), "limit": 2}
        evaluate(prompt_sets=["held-out"], folder=tmp_path / name, **who, **how)
        return list(contents_of(out, tmp_path / name).notes)

    assert report(out, "own") == []
    halved = tmp_path / "halved"
    if adapter == "full":
        LlamaForCausalLM.from_pretrained(out, dtype="bfloat16").save_pretrained(halved)
        assert report(halved, "in half precision") == []
    with pytest.raises(PactError, match="those of its checkpoint-1"):
        report(out / "checkpoint-1", "checkpoint")
    weights = out / ("adapter_model.safetensors" if adapter == "lora" else "model.safetensors")
    save_file({name: values + 1 for name, values in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(PactError, match="those of other weights"):
        report(out, "others")


@pytest.mark.parametrize(
    ("wrong", "said"), [({"judges": ["opning"]}, "`opening`"), ({"prompts": ["my.csv"]}, "my.csv")]
)
@pytest.mark.parametrize("host", HOSTS)
def test_what_cannot_be_asked_is_noticed_before_the_reference_is_built(
    host: Trainer, wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    """Prevents minutes of building before a misspelt judge, or a prompt file that is missing, stops the run."""
    trainer = host(tiny.llama(), tmp_path)
    trainer.add_callback(PactCallback(trainer, config(tmp_path, eval=wrong)))
    with pytest.raises(PactError, match=said):
        trainer.train()
    assert not (tmp_path / "cache").exists()
