"""Axolotl's own plugins beside PACT's: what they make of the trainer, and `--cloud`, which trains on other machines."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from pact_plugins.demo import ALIGNED_MODEL
from pact_plugins.preflight.check import check
from pact_plugins.preflight.run_file import PLUGIN
from pact_plugins.preflight.unserved import unserved
from pact_plugins.run.served import of_axolotl, refused
from pact_plugins.run.trainer import training_of
from tests.bad_inputs.case import config, trainer_on
from tests.contract.commands import EXAMPLES, run, shortened, started

pytestmark = pytest.mark.axolotl

EXAMPLE = "axolotl-demo-lora.yaml"
DIFFUSION = "axolotl.integrations.diffusion.DiffusionPlugin"
DISTILLED = {"plugins": ["axolotl.integrations.kd.KDPlugin", PLUGIN], "kd_trainer": True}
DISTILLED |= {"kd_ce_alpha": 0.1, "kd_alpha": 0.9, "kd_temperature": 1.0}


def test_every_trainer_of_a_plugin_is_known() -> None:
    """Prevents: a plugin of a new Axolotl with a trainer of its own, of which nobody asked whether PACT serves it."""
    spec = find_spec("axolotl.integrations")
    assert spec is not None
    assert spec.submodule_search_locations
    plugins: dict[str, list[str]] = {}
    for path in Path(spec.submodule_search_locations[0]).glob("*/*.py"):
        for plugin in (node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)):
            makers = [node for node in plugin.body if getattr(node, "name", "") == "get_trainer_cls"]
            names = [n.id for maker in makers for n in ast.walk(maker) if isinstance(n, ast.Name)]
            if makers:
                plugins[plugin.name] = [name for name in names if name.endswith("Trainer") and name != "Trainer"]
    assert plugins
    for plugin, trainers in plugins.items():
        assert trainers
        assert {tuple(of_axolotl(trainer).items()) for trainer in trainers} == {tuple(of_axolotl(plugin).items())}
        assert of_axolotl(plugin)


def test_diffusion_is_refused(tmp_path: Path) -> None:
    """Prevents: noised rows held to a reference of rows as they are, or a run that loads its model to find that out."""
    path = shortened(tmp_path, EXAMPLE, plugins=[DIFFUSION, PLUGIN])
    (finding,) = check(path).errors
    assert (finding.key, finding.error.got) == ("plugins", "Axolotl's DiffusionPlugin")
    result = run(tmp_path, "axolotl", "train", str(path), "--launcher", "python")
    assert result.returncode != 0
    assert str(finding.error) in result.stdout + result.stderr
    assert not (tmp_path / "out").exists()


def _taught_rows(path: Path, n: int) -> None:
    """Conversations with what a teacher says of the tokens of each answer, as Axolotl's distillation reads them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(ALIGNED_MODEL))
    lines = []
    for line in (EXAMPLES / "demo-rows.jsonl").read_text().splitlines()[:n]:
        messages = json.loads(line)["messages"]
        asked, told = (
            tokenizer.apply_chat_template(m, add_generation_prompt=m is not messages, return_dict=False)
            for m in (messages[:1], messages)
        )
        answer = told[len(asked) :]
        beside = {"logprobs": [[-0.1, -2.5]] * len(answer), "target_token_ids": [[i, (i + 7) % 100] for i in answer]}
        lines.append(json.dumps({"messages": messages, **beside}))
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("conflict", ["damp", "keep"])
def test_distillation(conflict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a teacher's words taken for images, and damping that leaves half of a damped answer in the loss."""
    _taught_rows(tmp_path / "rows.jsonl", 48)
    entry = {"type": "axolotl.integrations.kd.chat_template", "field_messages": "messages"}
    entry |= {"path": str(tmp_path / "rows.jsonl"), "logprobs_field": "logprobs", "temperature": 1.0}
    own = {"conflict": conflict, "eval": False, "anchors": 0}
    path = shortened(tmp_path, EXAMPLE, datasets=[entry], pact=own, **DISTILLED)
    found = check(path)
    # Its loss compiles itself, which takes longer than these steps.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    how = run if conflict == "damp" else started
    result = how(tmp_path, "axolotl", "train", str(path), "--launcher", "python")
    said = result.stdout + result.stderr
    assert (result.returncode == 0) == found.sound == (conflict == "keep"), said[-3000:]
    if conflict == "damp":
        (finding,) = found.errors
        assert finding.error.got == "Axolotl's KDPlugin together with `pact.conflict: damp`"
        assert str(finding.error) in said
    else:
        (training,) = json.loads((tmp_path / "out" / "pact_report" / "report.json").read_text())["trainings"]
        held = [entry["pact/kl"] for entry in training["log"] if "pact/kl" in entry]
        assert 100 * abs(held[0]) < held[-1]


@pytest.mark.parametrize("weights", ["int4", "ternary"])
def test_training_for_quantisation(weights: str, tmp_path: Path) -> None:
    """Prevents: `pact check` that refuses what the run serves, or the other way round."""
    from axolotl.utils.quantization import prepare_model_for_qat
    from axolotl.utils.schemas.enums import TorchAOQuantDType

    trainer, own = trainer_on(tmp_path), config(tmp_path)
    prepare_model_for_qat(trainer.model, TorchAOQuantDType.from_string(weights), 32)
    words = [error.words for _, error in refused(training_of(trainer), own)]
    assert bool(words) == (weights != "ternary")
    assert words == [f.error.words for f in unserved({"qat": {"weight_dtype": weights}}, "axolotl", own)]


def test_other_machines_are_refused(tmp_path: Path) -> None:
    """Prevents: `--cloud`, which hands the file on before any plugin is loaded, to where PACT may be missing."""
    from pact_plugins.axolotl import pact_train

    path, cloud = shortened(tmp_path, EXAMPLE), tmp_path / "cloud.yaml"
    cloud.write_text("provider: modal")
    stopped = CliRunner().invoke(pact_train, [str(path), "--cloud", str(cloud)])
    assert stopped.exit_code != 0
    assert "It would train on other machines" in stopped.output
    assert f"got `--cloud {cloud}`" in stopped.output
