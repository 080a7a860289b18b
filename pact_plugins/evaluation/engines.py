"""What writes answers: a function from a batch of chats to token ids, by transformers or by vLLM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from pact_plugins.errors import required
from pact_plugins.method.prompting import continuations, end_tokens

EngineName = Literal["transformers", "vllm"]

EachStep = Callable[[int], None]
"""Is told how many tokens have been written of each answer of a batch."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM reserves memory for."""


@dataclass(frozen=True)
class Generation:
    """How answers are decoded.

    Attributes:
        max_new_tokens: tokens of an answer at most.
        temperature: 0 for greedy decoding.
        seed: of sampling; greedy decoding does not use it.
        engine: what decodes: two engines round differently.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    engine: EngineName = "transformers"


@dataclass(frozen=True)
class Engine:
    """Writes answers.

    Attributes:
        answer: from the chats of a batch, as token ids up to the answer, the batch's seed, and what is told of each
            step to the tokens of each answer, padded behind its end or not.
        ends: ids of the tokens that end an answer.
    """

    answer: Callable[[list[list[int]], int, EachStep], list[list[int]]]
    ends: set[int]


def transformers_engine(model: nn.Module, tokenizer: Any, generation: Generation) -> Engine:
    """The model as it is, through `generate` of transformers."""

    def answer(chats: list[list[int]], seed: int, each_step: EachStep) -> list[list[int]]:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return continuations(model, chats, generation.max_new_tokens, generation.temperature, each_step)

    return Engine(answer, end_tokens(model, tokenizer))


def vllm_engine(name: str, adapter: str | None, lora_rank: int, ends: set[int], generation: Generation) -> Engine:
    """vLLM, with weights of its own from the same folder or hub name; they are loaded for the first answer.

    Chats go in as token ids, so that the chat template is the tokenizer's as everywhere. Written against vLLM's
    `LLM.generate`, `SamplingParams` and `LoRARequest` (github.com/vllm-project/vllm, Apache-2.0).

    Args:
        adapter: folder or hub name of a LoRA adapter on top, if there is one.

    Raises:
        PactError: vLLM is not installed.
    """
    vllm = required("vllm", "vllm", "the engine `vllm`")

    @cache
    def load() -> tuple[Any, Any]:
        if adapter is None:
            return vllm.LLM(model=name, dtype="auto"), None
        from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

        reserved = next((rank for rank in LORA_RANKS if rank >= lora_rank), lora_rank)
        llm = vllm.LLM(model=name, dtype="auto", enable_lora=True, max_lora_rank=reserved)
        return llm, LoRARequest("adapter", 1, adapter)

    def answer(chats: list[list[int]], seed: int, _each_step: EachStep) -> list[list[int]]:
        llm, lora = load()
        # The defaults of the rest sample from the whole distribution. Each chat has a seed of its own: equal ones
        # would draw the same random numbers.
        settings = [
            vllm.SamplingParams(
                temperature=generation.temperature,
                seed=seed + i,
                max_tokens=generation.max_new_tokens,
                stop_token_ids=sorted(ends),
                detokenize=False,
            )
            for i in range(len(chats))
        ]
        prompts = [{"prompt_token_ids": chat} for chat in chats]
        outputs = llm.generate(prompts, settings, use_tqdm=False, lora_request=lora)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return Engine(answer, ends)
