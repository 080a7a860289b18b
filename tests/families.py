"""A tiny random model of each family that the examples are for: its architecture, chat template and special tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from benchmarks.tiny_models import tiny_config
from tests.brief import few_prompts, without_page
from tests.templates import MISTRAL, shipped_templates, tokenizer_with

CHAT = [
    {"role": "user", "content": "Is it so?"},
    {"role": "assistant", "content": "It is so."},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": "Now as well."},
]


@dataclass(frozen=True)
class Family:
    """What a family's own checkpoints have.

    Attributes:
        model_type: as transformers calls it.
        template: where a host ships the family's own chat template; None for the one in `tests.templates`.
        tokens: the tokenizer's special tokens, as far as there are any.
    """

    model_type: str
    template: str | None
    tokens: dict[str, str | None]

    @property
    def chat_template(self) -> str:
        return MISTRAL if self.template is None else shipped_templates()[self.template]

    def tokenizer(self) -> Any:
        """One token a byte, besides the special ones."""
        tokenizer = tokenizer_with(self.chat_template, *CHAT)
        named = {"bos_token": None, "pad_token": None, **self.tokens}
        tokenizer.add_special_tokens({name: token for name, token in named.items() if token is not None})
        for name, token in named.items():
            setattr(tokenizer, name, token)
        return tokenizer

    def save(self, folder: Path, seed: int = 0) -> str:
        """Model and tokenizer in a folder, as `from_pretrained` wants them."""
        tokenizer = self.tokenizer()
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.2, **ids}
        torch.manual_seed(seed)
        config = tiny_config(CONFIG_MAPPING[self.model_type], **settings)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)


FAMILIES = {
    "llama-3.1-8b": Family("llama", "trl/llama3_1", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "qwen3-4b": Family("qwen3", "trl/qwen3_instruct_2507", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "gemma-3-1b": Family(
        "gemma3_text", "trl/gemma3", {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    ),
    "mistral-7b": Family("mistral", None, {"bos_token": "<s>", "eos_token": "</s>"}),
}
"""By the folder of their examples."""


def train(files: list[str]) -> None:
    """Trains with run files of Axolotl, one after the other, from the top of the repository."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.train import do_train

    with pytest.MonkeyPatch.context() as monkeypatch:
        few_prompts(monkeypatch)
        without_page(monkeypatch)
        for file in files:
            do_train(load_cfg(file), TrainerCliArgs())
