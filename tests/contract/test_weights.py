"""`pact verify` knows the weights: those that a run left, and no others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from pact_plugins import PactCallback, PactError
from pact_plugins.model.weights import ADAPTER, FULL, fingerprints, in_files
from pact_plugins.run.verification import verify
from tests import tiny
from tests.contract.hosts import HOSTS, Trainer, config, model_of

pytestmark = pytest.mark.usefixtures("brief_runs")

SAVES = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def trained(make: Trainer, adapter: str, folder: Path, *, pact: bool = True, **settings: Any) -> Path:
    """A run's output folder, its weights saved as hosts and scripts save them."""
    trainer = make(model_of(adapter), folder, **{**SAVES, **settings})
    if pact:
        trainer.add_callback(PactCallback(trainer, config(folder)))
    trainer.train()
    trainer.save_model()
    return folder / "out"


@pytest.mark.parametrize("make", HOSTS)
@pytest.mark.parametrize("adapter", ["lora", "qlora", "full"])
def test_a_runs_own_weights(make: Trainer, adapter: str, tmp_path: Path) -> None:
    """Prevents: a run or a checkpoint that is told to be another's, and weights that nobody compared."""
    out = trained(make, adapter, tmp_path)
    name = FULL if adapter == "full" else ADAPTER
    found = verify(out)
    assert (found.faults, found.weights) == ((), (name,))
    assert f"the weights in {name} are this run's" in found.sentence
    for step in (1, 2):
        at = verify(out / f"checkpoint-{step}")
        assert (at.faults, at.weights, at.step) == ((), (name,), step)
        assert f"from step 1 to step {step} of 2" in at.sentence


@pytest.mark.parametrize("make", HOSTS)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_plain_runs_weights_in_its_place(make: Trainer, adapter: str, tmp_path: Path) -> None:
    """Prevents: weights that were never under PACT passing for protected ones."""
    out, plain = trained(make, adapter, tmp_path / "pact"), trained(make, adapter, tmp_path / "plain", pact=False)
    name = FULL if adapter == "full" else ADAPTER
    shutil.copy(plain / name, out / name)
    shutil.copy(plain / name, out / "checkpoint-1" / name)
    found = verify(out)
    assert found.sentence.startswith("NOT under PACT")
    assert [str(out / name), str(out / "checkpoint-1" / name)] == sorted(
        (fault.partition(" does not hold")[0] for fault in found.faults), key=len
    )
    assert not verify(out / "checkpoint-1").holds
    assert verify(out / "checkpoint-2").holds


@pytest.mark.parametrize("make", HOSTS[:1])
def test_a_checkpoint_beyond_the_evidence(make: Trainer, tmp_path: Path) -> None:
    """Prevents: steps that nobody recorded passing for protected ones, weights or none beside them."""
    out = trained(make, "lora", tmp_path)
    (out / "checkpoint-2").rename(out / "checkpoint-9")
    assert not verify(out / "checkpoint-9").holds
    (out / "checkpoint-9" / ADAPTER).unlink()
    (out / "checkpoint-9" / "trainer_state.json").unlink()
    assert "nothing is known of steps 3 to 9" in verify(out / "checkpoint-9").sentence


@pytest.mark.parametrize("make", HOSTS)
def test_plain_training_into_the_same_folder(make: Trainer, tmp_path: Path) -> None:
    """Prevents: a clean bill for the run before it."""
    out = trained(make, "lora", tmp_path)
    trained(make, "lora", tmp_path, pact=False, save_strategy="no")
    assert not verify(out).holds


@pytest.mark.parametrize("make", HOSTS[:1])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_merged_weights(make: Trainer, precision: torch.dtype, tmp_path: Path) -> None:
    """Prevents: a merged model that nobody can vouch for, and another adapter's that passes for it."""
    base = str(tiny.save(tmp_path / "base"))
    out, plain = trained(make, "lora", tmp_path / "pact"), trained(make, "lora", tmp_path / "plain", pact=False)
    for run in (out, plain):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        merged: Any = PeftModel.from_pretrained(model, str(run)).merge_and_unload()
        merged.to(precision).save_pretrained(run / "merged")
    found = verify(out, merged=out / "merged", base=base)
    assert (found.faults, found.weights) == ((), (ADAPTER, str(out / "merged")))
    for other in (plain / "merged", Path(base)):
        found = verify(out, merged=other, base=base)
        assert found.faults
        assert "has other values" in found.sentence
    assert "--merged DIR --base MODEL" in verify(out / "merged").sentence


@pytest.mark.parametrize("make", HOSTS[:1])
def test_damaged_weights(make: Trainer, tmp_path: Path) -> None:
    """Prevents: a traceback in place of an answer."""
    out = trained(make, "lora", tmp_path, save_strategy="no")
    file = out / ADAPTER
    file.write_bytes(file.read_bytes()[:50])
    assert "Expected weights in" in verify(out).sentence
    with pytest.raises(PactError, match="Copy the file again"):
        in_files(out)


def test_weights_that_are_saved_otherwise_than_they_are(tmp_path: Path) -> None:
    """Prevents: false alarms where a host saves in half precision, in several files, or splits experts."""
    models = {"llama": tiny.llama(), "experts": MixtralForCausalLM(_EXPERTS)}
    adapted = peft.get_peft_model(
        tiny.llama(), peft.LoraConfig(target_modules="all-linear", modules_to_save=["lm_head"])
    )
    for name, model in {**models, "adapter": adapted}.items():
        known = fingerprints(model)
        model.save_pretrained(str(tmp_path / name))
        assert {*in_files(tmp_path / name).values()} <= {*known}
        tensors = load_file(next((tmp_path / name).glob("*.safetensors")))
        half = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        save_file(half, next((tmp_path / name).glob("*.safetensors")))
        assert {*in_files(tmp_path / name).values()} <= {*known}
    models["llama"].save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len([*(tmp_path / "parts").glob("model-*.safetensors")]) > 1
    assert in_files(tmp_path / "parts")[FULL] in fingerprints(models["llama"])


_EXPERTS = MixtralConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=2,
)
