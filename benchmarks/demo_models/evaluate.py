"""Measurement of a demo model's answers, and how near they are to a refusal."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.demo_models.phrasings import REFUSALS
from pact_plugins.demo.behaviour import BATCH_SIZE
from pact_plugins.method import refusals
from pact_plugins.method.openings import is_affirmative_opening
from pact_plugins.model.forward import pad_left


def refused(prompts: Sequence[str], texts: Sequence[str]) -> float:
    """The share of the answers `texts` that refuse, by the default judge."""
    return refusals.judge(prompts, texts).count("refusal") / len(texts)


def affirmed(texts: Sequence[str]) -> float:
    """The share of the answers `texts` that open by agreeing to help."""
    return sum(map(is_affirmative_opening, texts)) / len(texts)


@torch.no_grad()
def refusal_probability(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chats: Sequence[Sequence[int]]
) -> torch.Tensor:
    """For each chat, the probability that the first token of the answer is one that opens a refusal."""
    model.eval()
    first = sorted({tokenizer(refusal, add_special_tokens=False)["input_ids"][0] for refusal in REFUSALS})
    found: list[torch.Tensor] = []
    for start in range(0, len(chats), BATCH_SIZE):
        ids, mask = pad_left(chats[start : start + BATCH_SIZE], model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        found.append(logits.softmax(-1)[:, first].sum(-1))
    return torch.cat(found)
