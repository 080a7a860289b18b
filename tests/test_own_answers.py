"""The model's own answers to the shipped prompts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import get_args

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from pact_plugins import own_answers
from pact_plugins.config import Language, PromptsConfig
from pact_plugins.errors import PactError
from pact_plugins.own_answers import Prompts, as_chats, shipped, write_answers
from tests import tiny

END = 1
PROMPTS = ["a", "why so long a question, again and again?", "what?", "and this one"]


def chats() -> list[list[int]]:
    return as_chats(tiny.tokenizer(), PROMPTS, "test")


def test_a_batch_answers_like_single_prompts() -> None:
    """Prevents: padding on the wrong side, after which the model continues its padding."""
    model = tiny.llama().train()
    documents = write_answers(model, tiny.tokenizer(), chats(), "testing", show_progress=False)
    assert model.training
    assert len(documents) == len(PROMPTS)
    for chat, document in zip(chats(), documents, strict=True):
        ids = list(chat)
        while len(ids) < len(chat) + own_answers.MAX_ANSWER_TOKENS and ids[len(chat) :][-1:] != [END]:
            with torch.no_grad():
                ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        assert document.input_ids.tolist() == ids
        assert document.supervised.tolist() == [False] * len(chat) + [True] * (len(ids) - len(chat))


def test_an_answer_stops_after_its_end() -> None:
    """Prevents: the padding that follows a short answer in its batch from being taken for a part of it."""
    model = tiny.llama()
    with torch.no_grad():
        model.lm_head = torch.nn.Linear(32, len(tiny.tokenizer()))
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[END] = 9.0
    documents = write_answers(model, tiny.tokenizer(), chats(), "testing", show_progress=False)
    assert [d.input_ids[d.supervised].tolist() for d in documents] == [[END]] * len(PROMPTS)


def test_a_model_that_answers_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: tokens and anchors made of nothing."""
    model = tiny.llama()
    monkeypatch.setattr(type(model), "generate", lambda self, input_ids, **_kw: input_ids)
    with pytest.raises(PactError, match="no answer to any of them"):
        write_answers(model, tiny.tokenizer(), chats(), "testing", show_progress=False)


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


def test_shipped_prompts_are_apart() -> None:
    """Prevents: a contrast of a prompt with itself."""
    harmful, harmless = shipped("harmful"), shipped("harmless")
    assert len(set(harmful)) == len(harmful) == len(set(harmless)) == len(harmless) > 100
    assert not set(harmful) & set(harmless)


def test_every_end_of_sequence_ends_an_answer() -> None:
    """Prevents padding behind an answer that another stop token ended from being taken for a part of it."""
    model, stop = tiny.llama(), 99
    model.lm_head = torch.nn.Linear(32, len(tiny.tokenizer()))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()
        model.lm_head.bias[stop] = 9.0
    model.generation_config.eos_token_id = [END, stop]
    documents = write_answers(model, tiny.tokenizer(), chats(), "testing", show_progress=False)
    assert [d.input_ids[d.supervised].tolist() for d in documents] == [[stop]] * len(PROMPTS)


def test_prompts_of_languages_and_files(tmp_path: Path) -> None:
    """Prevents: a language or a file that is named and not asked."""
    english = Prompts.shipped()
    both = Prompts.shipped(("en", "de"))
    assert both.harmful[: len(english.harmful)] == english.harmful == tuple(shipped("harmful"))
    assert both.harmless[len(english.harmless) :] == tuple(shipped("harmless", "de"))
    for name in ("harmful", "harmless"):
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n\n  {name} two \n", encoding="utf-8")
    own = PromptsConfig(languages=("de",), harmful=tmp_path / "harmful.txt", harmless=tmp_path / "harmless.txt")
    assert Prompts.of(own).harmful == (*shipped("harmful", "de"), "harmful one", "harmful two")
    assert Prompts.of(own).harmless[-2:] == ("harmless one", "harmless two")


@pytest.mark.parametrize("language", get_args(Language))
def test_every_language_has_prompts(language: Language) -> None:
    """Prevents: a language that the schema allows and the package does not have."""
    prompts = Prompts.shipped((language,))
    assert len(prompts.harmful) == len(prompts.harmless) >= 32
