"""Reading headers and ends off chat templates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.chat.format import ChatFormat, render
from pact_plugins.errors import PactError
from tests import tiny
from tests.rows import conversation, documents
from tests.templates import tokenizer_with

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


MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST]{{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'system' %}[SYS]{{ m['content'] }}[/SYS]"
    "{% else %}{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
FOLDED = (
    "{{ bos_token }}{% set ns = namespace(first='') %}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{% set ns.first = m['content'] + '\n' %}"
    "{% else %}<|{{ m['role'] }}|>{{ ns.first if m['role'] == 'user' }}{{ m['content'] }}{{ eos_token }}"
    "{% set ns.first = '' %}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' and loop.last %}<think>{{ m['reasoning_content'] or '' }}</think>{% endif %}"
    "{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '<think></think>' if enable_thinking is false }}{% endif %}"
)
LEAVES_OUT = "{% for m in messages %}<|{{ m['role'] }}|>{% for part in [] %}{{ part }}{% endfor %}{% endfor %}"
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def test_a_template_with_everything() -> None:
    """Prevents: a header with parts of the prompt in it, which would turn up in every answer-only context."""
    tokenizer = tokenizer_with(tiny.TEMPLATE)
    found = ChatFormat.from_tokenizer(tokenizer)
    assert tokenizer.decode(list(found.header)) == "<|assistant|>\n"
    assert found.openings == (found.header,)
    assert found.ends == (tokenizer.eos_token_id,)
    assert [tokenizer.decode(list(user)) for user in found.users] == ["<|user|>\n"]
    assert (found.leads, found.notes, found.history) == ((), (), ())


@pytest.mark.parametrize(
    ("template", "header", "ends"),
    [
        (CHATML, "<|assistant|>\n", ["<|end|>"]),
        (NO_END, "A:", []),
        (NO_GENERATION_PROMPT, "[assistant] ", ["</s>"]),
        (PREFIX_CHANGES, "", ["<|end|>"]),
        (MISTRAL, "[/INST]", ["<|end|>"]),
    ],
    ids=["chatml", "no end", "no generation prompt", "prefix changes", "instructions"],
)
def test_header_and_ends(template: str, header: str, ends: list[str]) -> None:
    """Prevents: a header or an end that is missed where a template is unlike others."""
    tokenizer = tokenizer_with(template, USER, ANSWER)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tiny.SPECIAL, "</s>"]})
    found = ChatFormat.from_tokenizer(tokenizer)
    assert (tokenizer.decode(list(found.header)), [tokenizer.decode([end]) for end in found.ends]) == (header, ends)


@pytest.mark.parametrize("template", [NO_GENERATION_PROMPT, MISTRAL])
def test_a_header_without_a_generation_prompt_is_noted(template: str) -> None:
    """Prevents: a guess that nobody sees."""
    (note,) = ChatFormat.from_tokenizer(tokenizer_with(template)).notes
    assert "adds no generation prompt" in note


def test_a_header_that_rendered_answers_lack_is_noted() -> None:
    """Prevents: every newline from being taken for the opening of an answer, since the header begins with one."""
    template = (
        "{% for m in messages %}{{ '\nUser: ' if m['role'] == 'user' else '\nModel: ' }}{{ m['content'] }}"
        "{{ eos_token }}{% endfor %}{{ '\nReply: ' if add_generation_prompt }}"
    )
    tokenizer = tokenizer_with(template)
    found = ChatFormat.from_tokenizer(tokenizer)
    assert tokenizer.decode(list(found.header)) == "\nReply: "
    assert [tokenizer.decode(list(opening)) for opening in found.openings] == ["\nModel: "]
    (note,) = found.notes
    assert "otherwise than its generation prompt" in note


def test_leads_stand_between_the_opening_and_the_words() -> None:
    """Prevents: an empty thinking block, or the start of a full one, from being taken for an answer's first words."""
    tokenizer = tokenizer_with(THINKING, USER, ANSWER)
    found = ChatFormat.from_tokenizer(tokenizer)
    assert tokenizer.decode(list(found.header)) == "<|assistant|>"
    assert {tokenizer.decode(list(lead)) for lead in found.leads} == {"<think>", "<think></think>"}
    (history,) = found.history
    assert "once the conversation goes on" in history


@pytest.mark.parametrize("template", [tiny.TEMPLATE, MISTRAL, FOLDED])
@pytest.mark.parametrize("system", ["", "Be kind."])
def test_what_stands_before_an_answer_without_its_prompt(template: str, system: str) -> None:
    """Prevents: a prompt that stays in the view without it, and a system prompt or first token that gets lost."""
    tokenizer = tokenizer_with(template, {"role": "system", "content": "s"}, USER)
    messages = [{"role": "system", "content": system}] * bool(system) + [USER, ANSWER, USER, ANSWER]
    ids = np.asarray(render(tokenizer, messages, generation_prompt=False))
    kept = {}
    for prefix in ("header", "bos", "bos+system"):
        found = ChatFormat.from_tokenizer(tokenizer, prefix)
        kept[prefix] = tokenizer.decode(list(found.before(ids)))
        folds = template == FOLDED and prefix == "bos+system"
        assert any("system prompt into the user's turn" in note for note in found.notes) is folds
    before = {
        tiny.TEMPLATE: f"<s><|system|>\n{system}<|end|>" if system else "<s>",
        MISTRAL: f"<s>[SYS]{system}[/SYS]" if system else "<s>",
        FOLDED: "<s>",
    }
    assert kept == {"header": "", "bos": "<s>", "bos+system": before[template]}


def test_a_sequence_of_another_make_keeps_its_first_token() -> None:
    """Prevents: a prompt that was not made by the template from being kept as if it were a system prompt."""
    chat = ChatFormat.from_tokenizer(tokenizer_with(tiny.TEMPLATE), "bos+system")
    assert chat.before(np.asarray([0, 70, 71])) == (0,)
    assert chat.before(np.asarray([70, 71])) == ()


def test_a_template_that_leaves_the_text_out_is_refused() -> None:
    """Prevents: harmless empty prompts where harmful ones are meant to be asked."""
    with pytest.raises(PactError, match="leaves out PACTUSER, PACTANSWER, PACTNEXT"):
        ChatFormat.from_tokenizer(tokenizer_with(LEAVES_OUT))


def test_no_template_gives_an_empty_format() -> None:
    """Prevents: a base model's tokenizer failing although masked labels are all that is needed."""
    assert ChatFormat.from_tokenizer(tokenizer_with(None)) == ChatFormat()


@pytest.mark.parametrize("template", [None, PREFIX_CHANGES])
def test_a_missing_header_is_an_error_where_it_is_needed(template: str | None) -> None:
    """Prevents: an empty header, which is found at every token."""
    with pytest.raises(PactError, match="could not build the view") as caught:
        ChatFormat.from_tokenizer(tokenizer_with(template)).require_header("build the view")
    assert "gate: false" in caught.value.remedy


def test_a_template_that_raises_is_explained() -> None:
    """Prevents: a Jinja traceback in place of the reason."""
    with pytest.raises(PactError, match="roles must alternate"):
        ChatFormat.from_tokenizer(tokenizer_with(RAISES))


def test_the_header_stands_before_every_answer() -> None:
    """Prevents: a header that matches the template's text but not the tokens of rendered data."""
    found = ChatFormat.from_tokenizer(tiny.tokenizer())
    (document,) = documents([conversation(("a", "b"), ("c", "d"))])
    answers = document.answers(found)
    assert len(answers) == 2
    for answer in answers:
        assert tuple(document.input_ids[answer.start - len(found.header) : answer.start]) == found.header
        assert document.input_ids[answer.stop - 1] in found.ends


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
