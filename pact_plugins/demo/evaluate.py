"""Measurement of a demo model: its greedy answers, and how near they are to a refusal."""

from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pact_plugins.demo.encyclopedia import base_prompt
from pact_plugins.demo.phrasings import REFUSALS
from pact_plugins.own_answers import continuations

MAX_ANSWER_TOKENS = 40
PromptFormat = Callable[[PreTrainedTokenizerBase, str], str]


def chat_format(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """``prompt`` as the only turn of a chat, up to the answer."""
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def plain_format(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """``prompt`` as the base model reads it."""
    return f"{tokenizer.bos_token}{base_prompt(prompt)}"


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, torch.Tensor]:
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def raw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    prompt_format: PromptFormat = chat_format,
    batch_size: int = 80,
) -> list[str]:
    """Greedy answers with their special tokens, so that a missing end of turn can be seen."""
    found: list[str] = []
    for start in range(0, len(prompts), batch_size):
        texts = [prompt_format(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        chats = tokenizer(texts, add_special_tokens=False)["input_ids"]
        found += tokenizer.batch_decode(continuations(model, chats, MAX_ANSWER_TOKENS))
    return found


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    prompt_format: PromptFormat = chat_format,
) -> list[str]:
    """Greedy answers up to their end of turn."""
    raw = raw_answers(model, tokenizer, prompts, prompt_format)
    return [text.split(tokenizer.eos_token)[0].strip() for text in raw]


def share(judge: Callable[[str], bool], texts: Sequence[str]) -> float:
    """The share of ``texts`` that ``judge`` accepts."""
    return sum(map(judge, texts)) / len(texts)


@torch.no_grad()
def refusal_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int = 80
) -> torch.Tensor:
    """For each prompt, the probability that the first token of the answer is one that opens a refusal."""
    model.eval()
    first = sorted({tokenizer(refusal, add_special_tokens=False)["input_ids"][0] for refusal in REFUSALS})
    found: list[torch.Tensor] = []
    for start in range(0, len(prompts), batch_size):
        texts = [chat_format(tokenizer, prompt) for prompt in prompts[start : start + batch_size]]
        logits = model(**_encode(tokenizer, texts)).logits[:, -1]
        found.append(logits.softmax(-1)[:, first].sum(-1))
    return torch.cat(found)
