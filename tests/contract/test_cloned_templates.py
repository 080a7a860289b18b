"""TRL's `chat_template_path`, which adds another model's tokens to the model: they are trained, beside LoRA too."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from pact_plugins import PactCallback, PactError
from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.model.forward import evaluating
from pact_plugins.run.documents import training_documents
from tests import tiny
from tests.contract.hosts import TOKENS, common, config

pytestmark = [pytest.mark.trl, pytest.mark.usefixtures("brief_runs")]

LORA = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def cloning(folder: Path, *, adapter: dict[str, Any] | None, tied: bool, clones: bool = True) -> Any:
    """A trainer whose template is another tokenizer's, with two tokens that its own does not have."""
    from trl import SFTConfig, SFTTrainer

    other = copy.deepcopy(tiny.tokenizer())
    other.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|over|>"]})
    other.eos_token = "<|over|>"
    other.chat_template = tiny.TEMPLATE.replace("<|", "<|turn|><|")
    other.save_pretrained(folder / "other")
    more = {"chat_template_path": str(folder / "other")} if clones else {}
    return SFTTrainer(
        model=tiny.llama(tie_word_embeddings=tied),
        args=SFTConfig(**common(folder), assistant_only_loss=True, **more),
        train_dataset=tiny.conversations(16, 2),
        processing_class=copy.deepcopy(tiny.tokenizer()),
        peft_config=peft.LoraConfig(**adapter) if adapter else None,
    )


@pytest.mark.parametrize(
    ("adapter", "tied"), [(LORA, False), (None, True)], ids=["LoRA on an untied model", "full, tied"]
)
def test_the_reference_has_the_new_tokens(adapter: dict[str, Any] | None, tied: bool, tmp_path: Path) -> None:
    """Prevents: answers looked for under the old template, and a reference of the model before it was resized."""
    trainer = cloning(tmp_path, adapter=adapter, tied=tied)
    assert trainer.model.get_input_embeddings().weight.shape[0] % 64 == 0
    some = [*training_documents(trainer)][:4]
    with evaluating(trainer.model):
        before = [trainer.model(input_ids=torch.from_numpy(d.input_ids)[None]).logits[0].log_softmax(-1) for d in some]
    callback = PactCallback(trainer, config(tmp_path, anchors=2, conflict="keep"))
    trainer.add_callback(callback)
    trainer.train()
    assert callback.binding is not None
    preparation = callback.binding.prepare()
    assert preparation.coverage.share == 1.0
    for document, expected in zip(some, before, strict=True):
        tokens = AnswerTokens.of([replace(document, row=0)], preparation.objective.chat)
        cached = torch.from_numpy(preparation.objective.reference.look_up(tokens).full).float()
        # Kept in float16.
        torch.testing.assert_close(cached, expected[tokens.column][:, TOKENS], rtol=1e-3, atol=1e-3)
    kl = [entry["pact/kl"] for entry in trainer.state.log_history if "pact/kl" in entry]
    assert kl[0] < 1e-6 < kl[-1]


@pytest.mark.parametrize(
    ("more", "clones"), [({}, True), ({"trainable_token_indices": [40, 41]}, False)], ids=["cloned", "named"]
)
def test_trained_tokens_of_a_tied_model(more: dict[str, Any], clones: bool, tmp_path: Path) -> None:
    """Prevents: TRL's own error about a bias, after the model was asked; and a rule that outlives TRL's error."""
    trainer = cloning(tmp_path, adapter={**LORA, **more}, tied=True, clones=clones)
    with pytest.raises(PactError, match="trainable_token_indices"):
        PactCallback(trainer, config(tmp_path))
    with pytest.raises(AttributeError, match="bias"):
        trainer.train()
