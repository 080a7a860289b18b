"""Tiny models, a tiny chat tokenizer and tiny data, made on the spot."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
SPECIAL = ["<s>", "<|end|>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]


@lru_cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a chat template with a header and an end-of-turn token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<pad>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
    )


def llama(seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama of two layers over the tiny tokenizer's vocabulary."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Larger than the default, so that the random model has preferences and a step changes them.
        "initializer_range": 0.2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "tie_word_embeddings": False,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def conversations(n: int = 8, turns: int = 1) -> Dataset:
    """Conversations of different lengths, in the `messages` format of TRL and Axolotl."""
    return Dataset.from_list(
        [
            {
                "messages": [
                    message
                    for turn in range(turns)
                    for message in (
                        {"role": "user", "content": f"question {i}.{turn} " + "why " * (i % 5)},
                        {"role": "assistant", "content": f"answer {i}.{turn} " + "so " * (i % 3 + 1)},
                    )
                ]
            }
            for i in range(n)
        ]
    )


def preferences(n: int = 16) -> Dataset:
    """Pairs of answers, of different lengths, in the format of TRL and Axolotl."""
    rows = [conversation[:2] for conversation in conversations(n)["messages"]]
    rejected = [{"role": "assistant", "content": f"no {i} " + "never " * (i % 4)} for i in range(n)]
    return Dataset.from_list(
        [{"prompt": [u], "chosen": [c], "rejected": [r]} for (u, c), r in zip(rows, rejected, strict=True)]
    )


def save(folder: Any, **changes: Any) -> str:
    """Model and tokenizer in a folder, as `from_pretrained` wants them."""
    llama(**changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)
