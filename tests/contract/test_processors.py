"""Vision-language models that are trained on text: hosts load a processor in place of a tokenizer, or beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pact_plugins import PactCallback
from pact_plugins.run.documents import training_documents
from pact_plugins.run.verification import verify
from tests import tiny, vision
from tests.contract.commands import run
from tests.contract.hosts import TOKENS, common, config

pytestmark = pytest.mark.usefixtures("brief_runs")

TEMPLATES = {"texts or parts": vision.BOTH, "parts alone": vision.PARTS}


@pytest.mark.trl
@pytest.mark.parametrize("template", TEMPLATES)
def test_text_for_a_model_that_sees_images(template: str, tmp_path: Path) -> None:
    """Prevents a run that TRL trains from being refused, and answers that are looked for under another template."""
    from trl import SFTConfig, SFTTrainer

    (model, processor), found = vision.gemma3(TEMPLATES[template]), {}
    for kind in (processor, tiny.tokenizer()):
        trainer: Any = SFTTrainer(
            model=model,
            args=SFTConfig(**common(tmp_path), assistant_only_loss=True),
            train_dataset=tiny.conversations(8, 2),
            processing_class=kind,
        )
        found[kind] = [document.key for document in training_documents(trainer)]
        if kind is processor:
            trainer.add_callback(PactCallback(trainer, config(tmp_path, anchors=2)))
            trainer.train()
            assert verify(tmp_path / "out").holds
    assert found[processor] == found[tiny.tokenizer()]


def _file(folder: Path, template: str, **settings: Any) -> Path:
    """A run's file for such a checkpoint, with its rows beside it."""
    rows = tiny.conversations(8, 2)
    if settings.pop("parts", False):
        rows = [
            {"messages": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in r["messages"]]}
            for r in rows
        ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = {"safety_tokens": TOKENS, "anchors": 0, "eval": False}
    base = {"pact": own, "max_steps": 2, "learning_rate": 0.1, "logging_steps": 1, "output_dir": str(folder / "out")}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**base, "bf16": False, "use_cpu": True, "save_strategy": "no", **settings}))
    return path


def _check_held(folder: Path) -> None:
    """Every answer token of every row was constrained, from the model as it was."""
    (training,) = json.loads((folder / "out" / "pact_report" / "report.json").read_text())["trainings"]
    assert training["about"]["data"]["coverage"]["share"] == 1.0
    held = [entry["pact/kl"] for entry in training["log"] if "pact/kl" in entry]
    assert held[0] < 1e-6 < held[-1]


@pytest.mark.trl
@pytest.mark.parametrize("template", TEMPLATES)
def test_trl_loads_the_processor(template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a checkpoint with its processor that `pact sft` stops at, or whose rows it reads otherwise than TRL."""
    from pact_plugins.cli.trl import sft

    monkeypatch.setenv("PACT_CACHE_DIR", str(tmp_path / "cache"))
    path = _file(
        tmp_path,
        template,
        model_name_or_path=vision.save(tmp_path / "model", TEMPLATES[template]),
        datasets=[{"path": "json", "data_files": str(tmp_path / "rows.jsonl")}],
        assistant_only_loss=True,
        dtype="float32",
        report_to="none",
    )
    sft(["--config", str(path)])
    _check_held(tmp_path)


BESIDE: dict[str, Any] = {
    "processor_type": "AutoProcessor",
    "skip_prepare_dataset": True,
    "remove_unused_columns": False,
}


@pytest.mark.axolotl
@pytest.mark.parametrize(
    ("template", "settings"),
    [("texts or parts", {}), ("parts alone", {"parts": True}), ("parts alone", BESIDE)],
    ids=["texts", "parts", "parts, by the processor"],
)
def test_axolotl_loads_the_tokenizer_or_the_processor(template: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Prevents the same in Axolotl, which renders rows with the processor if it is told to, one batch at a time."""
    rows = {"path": str(tmp_path / "rows.jsonl"), "ds_type": "json", "type": "chat_template"}
    path = _file(
        tmp_path,
        template,
        plugins=["pact_plugins.axolotl.PactPlugin"],
        base_model=vision.save(tmp_path / "model", TEMPLATES[template]),
        chat_template="tokenizer_default",
        datasets=[{**rows, "field_messages": "messages", "roles_to_train": ["assistant"]}],
        dataset_prepared_path=str(tmp_path / "prepared"),
        sequence_len=512,
        micro_batch_size=4,
        gradient_accumulation_steps=1,
        optimizer="sgd",
        special_tokens={"pad_token": "<pad>"},
        **settings,
    )
    result = run(tmp_path, "axolotl", "pact-train", str(path), "--launcher", "python")
    assert result.returncode == 0, result.stderr[-3000:]
    _check_held(tmp_path)
