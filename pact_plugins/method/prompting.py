"""The shipped prompts, and how a model answers chats: what safety tokens are found in, and anchors are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

from pact_plugins.chat.answers import Document
from pact_plugins.chat.format import ChatFormat, render
from pact_plugins.config import Language, PromptsConfig
from pact_plugins.errors import PactError
from pact_plugins.model.forward import evaluating, pad_left
from pact_plugins.model.sharding import generating
from pact_plugins.model.support import check_ids

Shipped = Literal[
    "harmful",
    "harmless",
    "more_harmful",
    "more_harmless",
    "other_harmful",
    "other_harmless",
    "held_out_harmful",
    "held_out_harmless",
    "held_out_other_harmful",
    "held_out_other_harmless",
    "refusals",
    "compliances",
]

MAX_ANSWER_TOKENS = 48
"""Tokens that the model writes of each answer; a refusal is over, or has become plain, by then."""

THE_DAY = date(2026, 1, 1)
"""On which models are asked, whenever that is: what they are asked is then a matter of the prompts alone."""


def shipped(name: Shipped, language: Language = "en") -> list[str]:
    """The lines of a shipped prompt file; other languages than English have `harmful` and `harmless` alone."""
    folder = resources.files("pact_plugins.method") / "prompts"
    file = (folder if language == "en" else folder / language) / f"{name}.txt"
    return _lines(file.read_text(encoding="utf-8"))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


@dataclass(frozen=True)
class Prompts:
    """What a model is asked to see how it refuses: harmful prompts, and as many harmless ones that look like them."""

    harmful: tuple[str, ...]
    harmless: tuple[str, ...]

    @classmethod
    def shipped(cls, languages: Sequence[Language] = ("en",)) -> Prompts:
        """The shipped ones of each language, mixed."""
        return cls.mixed([cls(tuple(shipped("harmful", of)), tuple(shipped("harmless", of))) for of in languages])

    @classmethod
    def mixed(cls, parts: Sequence[Prompts]) -> Prompts:
        """All pairs, each part spread over the whole in its order, so that a short run has anchors of every part."""
        placed = [((i + 0.5) / len(part.harmful), pair) for part in parts for i, pair in enumerate(part.pairs)]
        harmful, harmless = zip(*(pair for _, pair in sorted(placed, key=lambda of: of[0])), strict=True)
        return cls(harmful, harmless)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each harmful one with the harmless one that looks like it."""
        return [*zip(self.harmful, self.harmless, strict=True)]

    @property
    def in_turn(self) -> list[str]:
        """A harmful one, the harmless one that looks like it, and so on."""
        return [prompt for pair in self.pairs for prompt in pair]

    @classmethod
    def of(cls, config: PromptsConfig) -> Prompts:
        """The shipped ones and the user's own, mixed.

        Raises:
            PactError: a file cannot be read, or the two do not hold equally many prompts.
        """
        both = cls.shipped(config.languages)
        if config.harmful is None or config.harmless is None:
            return both
        harmful, harmless = (_own_lines(path) for path in (config.harmful, config.harmless))
        if not len(harmful) == len(harmless) > 0:
            raise PactError(
                expected="as many harmful as harmless prompts, and at least one, one on each line",
                got=f"{len(harmful)} in {config.harmful} and {len(harmless)} in {config.harmless}",
                consequence="What tells them apart would not be what tells refusals from help.",
                remedy="Give each harmful prompt a harmless one that looks like it.",
            )
        return cls.mixed([both, cls(tuple(harmful), tuple(harmless))])


def _own_lines(path: Path) -> list[str]:
    try:
        return _lines(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PactError(
            expected=f"a text file with a prompt on each line, {path}",
            got=f"{type(error).__name__}: {error}",
            consequence="The model would not be asked what you meant it to be.",
            remedy="Correct `pact.prompts`.",
        ) from error


_NOW = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
"""Where a chat template writes the date."""

_WITHOUT_TEMPLATE = (
    "Set the model's own chat template, or do without: give `pact.safety_tokens` a list and set `pact.anchors: 0`."
)


def as_chats(
    tokenizer: Any, prompts: Sequence[str | list[dict[str, str]]], purpose: str, remedy: str = _WITHOUT_TEMPLATE
) -> list[list[int]]:
    """Token ids of each prompt as the only turn of a chat, or of a whole conversation, up to the answer.

    A template that writes the date is told that it is `THE_DAY`, so that a model is asked the same on every day.

    Raises:
        PactError: the tokenizer has no chat template; the error says that `purpose` needs it, and the `remedy`.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise PactError(
            expected="a tokenizer with a chat template",
            got="one without",
            consequence=f"PACT could not {purpose}.",
            remedy=remedy,
        )
    template = tokenizer.chat_template
    undated = _NOW.sub(lambda now: repr(THE_DAY.strftime(now[2])), template) if isinstance(template, str) else template
    other = {} if undated == template else {"chat_template": undated}
    chats = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    return [render(tokenizer, chat, generation_prompt=True, **other) for chat in chats]


def answered(prompt: Sequence[int], answer: Sequence[int]) -> Document:
    """A document of a prompt and an answer to it, the answer supervised."""
    supervised = np.zeros(len(prompt) + len(answer), bool)
    supervised[len(prompt) :] = True
    return Document(np.asarray([*prompt, *answer], np.int64), supervised)


def end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    """Ids of the tokens that end an answer: those of the chat template, the tokenizer and the generation config."""
    config = cast(Any, model).generation_config
    stops = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return {
        end for end in (*ChatFormat.from_tokenizer(tokenizer).ends, tokenizer.eos_token_id, *stops) if end is not None
    }


def up_to_end(answer: Sequence[int], ends: set[int]) -> list[int]:
    """The answer up to and with its first end token; all of it, if there is none."""
    length = next((i + 1 for i, token in enumerate(answer) if token in ends), len(answer))
    return list(answer[:length])


def continuations(
    model: nn.Module,
    chats: Sequence[Sequence[int]],
    length: int,
    temperature: float = 0.0,
    each_step: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """At most `length` tokens after each chat, all in one batch: padding follows the end of an answer.

    Args:
        temperature: 0 for greedy decoding; above it, tokens are sampled from the whole distribution.
        each_step: is told how many tokens have been written of each.

    Raises:
        PactError: the model has no embedding for a token of the chats.
    """
    check_ids(model, chats, "a prompt")
    # Generation continues at the right edge, so chats are padded on the left.
    ids, mask = pad_left(chats, next(model.parameters()).device)
    # A model's own generation config may cut the distribution: the temperature alone should say how it is sampled.
    # Hosts that train switch the cache of keys and values off there.
    choice: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    if each_step is not None:
        choice["stopping_criteria"] = StoppingCriteriaList([_Told(each_step, ids.shape[1])])
    with evaluating(model), generating(model) as needed:
        output = cast(Any, model).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=length, use_cache=True, **choice, **needed
        )
    return output[:, ids.shape[1] :].tolist()


class _Told(StoppingCriteria):
    """Stops nothing: `generate` asks it after each token, and it tells how many there are.

    Args:
        each_step: is told.
        before: tokens of a chat, padding included.
    """

    def __init__(self, each_step: Callable[[int], None], before: int) -> None:
        self._each_step, self._before = each_step, before

    def __call__(self, input_ids: Any, scores: Any, **_kwargs: Any) -> Any:
        self._each_step(input_ids.shape[1] - self._before)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
