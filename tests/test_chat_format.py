"""Reading headers and ends off chat templates."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pact_plugins.answers import AnswerTokens
from pact_plugins.chat_format import ChatFormat, render
from pact_plugins.errors import PactError
from tests import tiny
from tests.rows import conversation, documents

CHATML = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
NO_GENERATION_PROMPT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}</s>{% endfor %}"
NO_END = (
    "{% for m in messages %}{% if m['role'] == 'user' %}U:{{ m['content'] }}{% else %}A:{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
PREFIX_CHANGES = (
    "{% if add_generation_prompt %}<|system|>{% endif %}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
)
RAISES = "{{ raise_exception('roles must alternate') }}"


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="<|end|>", bos_token="<s>"
    )
    tokenizer.chat_template = template  # type: ignore[assignment]
    return tokenizer


@pytest.mark.parametrize(
    ("template", "header", "end"),
    [
        (tiny.TEMPLATE, "<|assistant|>\n", "<|end|>"),
        (CHATML, "<|assistant|>\n", "<|end|>"),
        (NO_END, "A:", "<|end|>"),
        (NO_GENERATION_PROMPT, "", "<"),
        (PREFIX_CHANGES, "", "<|end|>"),
    ],
    ids=["tiny", "chatml", "no end", "no generation prompt", "prefix changes"],
)
def test_header_and_end(template: str, header: str, end: str) -> None:
    """Prevents: a header with parts of the prompt in it, which would turn up in every answer-only context."""
    tokenizer = with_template(template)
    found = ChatFormat.from_tokenizer(tokenizer)
    assert tokenizer.decode(list(found.header)) == header
    assert found.end is not None
    assert tokenizer.decode([found.end]) == end


def test_no_template_gives_an_empty_format() -> None:
    """Prevents: a base model's tokenizer failing although masked labels are all that is needed."""
    assert ChatFormat.from_tokenizer(with_template(None)) == ChatFormat()


@pytest.mark.parametrize("template", [None, NO_GENERATION_PROMPT, PREFIX_CHANGES])
def test_a_missing_header_is_an_error_where_it_is_needed(template: str | None) -> None:
    """Prevents: an empty header, which is found at every token."""
    with pytest.raises(PactError, match="could not build the view") as caught:
        ChatFormat.from_tokenizer(with_template(template)).require_header("build the view")
    assert "gate: false" in caught.value.remedy


def test_a_template_that_raises_is_explained() -> None:
    """Prevents: a Jinja traceback in place of the reason."""
    with pytest.raises(PactError, match="roles must alternate"):
        ChatFormat.from_tokenizer(with_template(RAISES))


def test_the_header_stands_before_every_answer() -> None:
    """Prevents: a header that matches the template's text but not the tokens of rendered data."""
    found = ChatFormat.from_tokenizer(tiny.tokenizer())
    (document,) = documents([conversation(("a", "b"), ("c", "d"))])
    answers = document.answers(found)
    assert len(answers) == 2
    for start, stop in answers:
        assert tuple(document.input_ids[start - len(found.header) : start]) == found.header
        assert document.input_ids[stop - 1] == found.end


def test_answers_need_no_template_when_labels_separate_them() -> None:
    """Prevents: refusing prompt-completion data, where nothing needs the header."""
    docs = documents([conversation(("a", "bc"))])
    assert AnswerTokens.of(docs, ChatFormat()).label.tolist() == AnswerTokens.of(docs, _tiny()).label.tolist()


def _tiny() -> ChatFormat:
    return ChatFormat.from_tokenizer(tiny.tokenizer())


@pytest.mark.parametrize("generation_prompt", [False, True])
def test_render_gives_plain_ids(generation_prompt: bool) -> None:
    """Prevents: a tokenizer that returns a dictionary, whose keys would be taken for ids."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    ids = render(tiny.tokenizer(), messages, generation_prompt=generation_prompt)
    assert isinstance(ids, list)
    assert all(type(i) is int for i in ids)
    assert (tiny.tokenizer().decode(ids).endswith("<|assistant|>\n")) is generation_prompt
