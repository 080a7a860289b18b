"""A tiny model that sees images, its processor, and chat templates for it; it is trained on text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from tests import tiny

_CONTENT = "{{ m['content'] }}"
_PARTS = (
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}<img>{% endif %}"
    "{% endfor %}"
)
PARTS = tiny.TEMPLATE.replace(_CONTENT, _PARTS)
"""Takes a message as a list of parts alone, as the template of SmolVLM does."""
BOTH = tiny.TEMPLATE.replace(_CONTENT, f"{{% if m['content'] is string %}}{_CONTENT}{{% else %}}{_PARTS}{{% endif %}}")
"""Takes a message as a text, too, as that of Gemma 3 does."""


def gemma3(template: str = BOTH) -> tuple[Any, Any]:
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
    # Larger than the default, as in `tiny.llama`.
    of_text["initializer_range"] = 0.2
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
        chat_template=template,
        image_seq_length=4,
    )
    return transformers.Gemma3ForConditionalGeneration(settings), processor


def save(folder: Path, template: str) -> str:
    """Model and processor in a folder, as a checkpoint on the hub has them."""
    for part in gemma3(template):
        part.save_pretrained(folder)
    return str(folder)
