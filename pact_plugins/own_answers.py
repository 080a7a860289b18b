"""The shipped prompts, and a model's own answers to them: what safety tokens are found in, and anchors are made of."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, Literal, cast

import numpy as np
from torch import nn

from pact_plugins.answers import Document
from pact_plugins.chat_format import ChatFormat, render
from pact_plugins.errors import PactError
from pact_plugins.forward import evaluating, pad, progress

MAX_ANSWER_TOKENS = 48
"""Tokens that the model writes of each answer; a refusal is over, or has become plain, by then."""

BATCH_SIZE = 32
"""Prompts answered at once."""


def shipped(name: Literal["harmful", "harmless", "refusals"]) -> list[str]:
    """The lines of a shipped prompt file."""
    text = (resources.files("pact_plugins") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


def as_chats(tokenizer: Any, prompts: Sequence[str], purpose: str) -> list[list[int]]:
    """Token ids of each prompt as the only turn of a chat, up to the answer.

    Raises:
        PactError: the tokenizer has no chat template; the error says that `purpose` needs it.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise PactError(
            expected="a tokenizer with a chat template",
            got="one without",
            consequence=f"PACT could not {purpose}.",
            remedy="Set the model's own chat template, or do without: give `pact.safety_tokens` a list and set "
            "`pact.anchors: 0`.",
        )
    return [render(tokenizer, [{"role": "user", "content": p}], generation_prompt=True) for p in prompts]


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Document:
    """A document of a prompt and an answer to it, the answer supervised."""
    supervised = np.zeros(len(prompt) + len(answer), bool)
    supervised[len(prompt) :] = True
    return Document(np.asarray([*prompt, *answer], np.int64), supervised)


def write_answers(
    model: nn.Module, tokenizer: Any, chats: Sequence[Sequence[int]], what: str, *, show_progress: bool = True
) -> list[Document]:
    """Greedy answers of `model`, as it is now, to `chats`; those that it leaves empty are dropped.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, whose chat template says which token ends an answer.
        chats: what `as_chats` gives.
        what: describes the progress bar.

    Raises:
        PactError: the model answers nothing.
    """
    config = cast(Any, model).generation_config
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = {ChatFormat.from_tokenizer(tokenizer).end, *stops}
    starts = range(0, len(chats), BATCH_SIZE)
    documents: list[Document] = []
    for start in progress(starts, f"PACT: {what}", len(starts), show_progress):
        batch = chats[start : start + BATCH_SIZE]
        for chat, answer in zip(batch, continuations(model, batch, MAX_ANSWER_TOKENS), strict=True):
            length = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
            if length:
                documents.append(answered(chat, answer[:length]))
    if not documents:
        raise PactError(
            expected=f"the model to answer some of {len(chats)} shipped prompts",
            got="no answer to any of them",
            consequence="It could not be seen how the model refuses.",
            remedy="Check the model's generation config and chat template.",
        )
    return documents


def continuations(model: nn.Module, chats: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """At most `length` greedy tokens after each chat, all in one batch: padding follows the end of an answer."""
    # Generation continues at the right edge, so chats are padded on the left.
    reverse = [np.asarray(chat[::-1], np.int64) for chat in chats]
    ids, mask = (t.flip(1) for t in pad(reverse, next(model.parameters()).device))
    with evaluating(model):
        output = cast(Any, model).generate(input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=False)
    return output[:, ids.shape[1] :].tolist()
