"""Vision-language models that are trained on text: TRL gives their trainer a processor in place of a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from pact_plugins import PactCallback
from pact_plugins.run.trainer import training_documents
from pact_plugins.run.verification import verify
from tests import tiny
from tests.contract.hosts import common, config

pytestmark = [pytest.mark.trl, pytest.mark.usefixtures("brief_runs")]

CONTENT = "{{ m['content'] }}"
BOTH = f"{{% if m['content'] is string %}}{CONTENT}{{% else %}}{{{{ m['content'][0]['text'] }}}}{{% endif %}}"
"""A message as a text, and as the list of parts that TRL makes of it for a processor."""


def gemma3() -> tuple[Any, Any]:
    """Gemma 3 with its vision tower, and its processor."""
    from transformers.models.gemma3 import Gemma3ImageProcessorPil

    names = {"image_token": "<img>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer: Any = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        extra_special_tokens=names,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    of_text = {**sizes, "vocab_size": len(tokenizer), "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64}
    settings = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**of_text, bos_token_id=0, eos_token_id=1, pad_token_id=2),
        vision_config=transformers.SiglipVisionConfig(**sizes, image_size=28, patch_size=14),
        mm_tokens_per_image=4,
        image_token_index=tokenizer.image_token_id,
    )
    torch.manual_seed(0)
    processor = transformers.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        chat_template=tiny.TEMPLATE.replace(CONTENT, BOTH),
        image_seq_length=4,
    )
    return transformers.Gemma3ForConditionalGeneration(settings), processor


def test_text_for_a_model_that_sees_images(tmp_path: Path) -> None:
    """Prevents a run that TRL trains from being refused, and answers that are looked for under another template."""
    from trl import SFTConfig, SFTTrainer

    (model, processor), found = gemma3(), {}
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
