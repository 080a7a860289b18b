"""Measurement of a demo model: its greedy answers, and how near they are to a refusal."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pact_plugins.demo.encyclopedia import base_prompt
from pact_plugins.demo.phrasings import REFUSALS
from pact_plugins.method import refusals
from pact_plugins.method.openings import is_affirmative_opening
from pact_plugins.method.prompting import continuations
from pact_plugins.model.forward import pad_left

MAX_ANSWER_TOKENS = 40
BATCH_SIZE = 80
PromptFormat = Callable[[PreTrainedTokenizerBase, str], str]


def chat_format(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """`prompt` as the only turn of a chat, up to the answer."""
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def plain_format(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """`prompt` as the base model reads it."""
    return f"{tokenizer.bos_token}{base_prompt(prompt)}"


def _batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], prompt_format: PromptFormat
) -> Iterator[list[list[int]]]:
    """Token ids of the prompts, up to their answers."""
    for start in range(0, len(prompts), BATCH_SIZE):
        texts = [prompt_format(tokenizer, prompt) for prompt in prompts[start : start + BATCH_SIZE]]
        yield tokenizer(texts, add_special_tokens=False)["input_ids"]


def raw_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    prompt_format: PromptFormat = chat_format,
) -> list[str]:
    """Greedy answers with their special tokens, so that a missing end of turn can be seen."""
    found: list[str] = []
    for chats in _batches(tokenizer, prompts, prompt_format):
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


def refused(prompts: Sequence[str], texts: Sequence[str]) -> float:
    """The share of the answers `texts` that refuse, by the default judge."""
    return refusals.judge(prompts, texts).count("refusal") / len(texts)


def affirmed(texts: Sequence[str]) -> float:
    """The share of the answers `texts` that open by agreeing to help."""
    return sum(map(is_affirmative_opening, texts)) / len(texts)


@torch.no_grad()
def refusal_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]
) -> torch.Tensor:
    """For each prompt, the probability that the first token of the answer is one that opens a refusal."""
    model.eval()
    first = sorted({tokenizer(refusal, add_special_tokens=False)["input_ids"][0] for refusal in REFUSALS})
    found: list[torch.Tensor] = []
    for chats in _batches(tokenizer, prompts, chat_format):
        ids, mask = pad_left(chats, model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        found.append(logits.softmax(-1)[:, first].sum(-1))
    return torch.cat(found)
