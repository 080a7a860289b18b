"""The shipped prompts, and chats made of prompts."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import get_args

import pytest
from transformers import PreTrainedTokenizerFast

from pact_plugins.config import Language, PromptsConfig
from pact_plugins.errors import PactError
from pact_plugins.method.prompting import Prompts, as_chats, shipped
from tests import tiny

PROMPTS = ["a", "why so long a question, again and again?", "what?", "and this one"]


def test_a_chat_template_is_needed() -> None:
    """Prevents: bare prompts, as no chat of this model ever holds."""
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(PactError, match="render for a test"):
        as_chats(bare, PROMPTS, "render for a test")


def test_a_template_without_a_generation_prompt_serves() -> None:
    """Prevents: Mistral's and Llama-2's templates, whose user turns end where the answer begins, being refused."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    assert [tokenizer.decode(chat) for chat in as_chats(tokenizer, ["a"], "test")] == ["<s>a<|end|>"]


def test_the_date_of_a_template_is_no_part_of_the_question() -> None:
    """Prevents: a model that is asked everything again each day, since its template writes the date."""
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert [tokenizer.decode(chat) for chat in as_chats(tokenizer, ["a"], "test")] == ["01 Jan 2026a"]


def test_shipped_prompts_are_apart() -> None:
    """Prevents: a contrast of a prompt with itself."""
    harmful, harmless = shipped("harmful"), shipped("harmless")
    assert len(set(harmful)) == len(harmful) == len(set(harmless)) == len(harmless) > 100
    assert not set(harmful) & set(harmless)


def test_prompts_of_languages_and_files(tmp_path: Path) -> None:
    """Prevents: a language or a file that is named and not asked."""
    english = Prompts.shipped()
    both = Prompts.shipped(("en", "de"))
    assert english.harmful == tuple(shipped("harmful"))
    assert sorted(both.harmful) == sorted([*english.harmful, *shipped("harmful", "de")])
    for name in ("harmful", "harmless"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n  {name} two \n", encoding="utf-8")
    own = PromptsConfig(languages=("de",), harmful=tmp_path / "harmful.txt", harmless=tmp_path / "harmless.txt")
    asked, german = Prompts.of(own), Prompts.shipped(("de",))
    assert [asked.harmful.index(f"harmful {which}") for which in ("one", "two")] == [8, 25]
    assert {*asked.pairs} == {*german.pairs, ("harmful one", "harmless one"), ("harmful two", "harmless two")}


def test_every_part_is_spread_over_the_whole() -> None:
    """Prevents: a short run without one anchor of the user's own prompts, or of a language that was asked for."""
    english, german = Prompts.shipped(), Prompts.shipped(("de",))
    mixed = Prompts.shipped(("en", "de")).pairs
    for part in (english, german):
        assert [pair for pair in mixed if pair in part.pairs] == part.pairs
        places = [i for i, pair in enumerate(mixed) if pair in part.pairs]
        gaps = [b - a for a, b in itertools.pairwise([-1, *places, len(mixed)])]
        assert max(gaps) <= len(mixed) / len(places) + 1


@pytest.mark.parametrize("language", get_args(Language))
def test_every_language_has_prompts(language: Language) -> None:
    """Prevents: a language that the schema allows and the package does not have."""
    prompts = Prompts.shipped((language,))
    assert len(prompts.harmful) == len(prompts.harmless) >= 32
