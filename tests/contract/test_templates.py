"""Every chat template that a host ships: answers are found, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import find
from pact_plugins.errors import PactError
from pact_plugins.method.prompting import answered, as_chats
from tests.templates import MISTRAL, by_host, rendered, shipped_templates, tokenizer_with

FOR_IMAGES = {"idefics3", "idefics3_training", "llava_next", "llava_next_training", "smolvlm", "smolvlm_training"}
"""Templates that take no plain text for a message's content, but a list of parts."""

WITHOUT_END = {"llava"}
"""Templates that do not end an assistant turn with a special token."""

PLAIN_TEXT = {"alpaca", "llava", "idefics3", "idefics3_training", "smolvlm", "smolvlm_training"}
"""Templates that open turns without a special token."""

TEMPLATES = {**shipped_templates(), "own/mistral": MISTRAL}


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [
    message("user", "Qone is it?"),
    message("assistant", "Aone it is."),
    message("user", "Qtwo is it?"),
    message("assistant", "Atwo it is."),
    message("user", "Qthree is it?"),
    message("assistant", "Athree it is."),
]
CALL = {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"place": "Cplace"}}}
TOOLS = [
    message("user", "Qone is it?"),
    message("assistant", "", tool_calls=[CALL]),
    message("tool", "Rsunny", name="weather", tool_call_id="call00001"),
    message("assistant", "Aone it is."),
    message("user", "Qtwo is it?"),
    message("assistant", "Atwo it is."),
]


def as_wanted(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as the template takes it."""
    if name.partition("/")[2] not in FOR_IMAGES:
        return messages
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def prepared(name: str, messages: list[dict[str, Any]]) -> tuple[Any, ChatFormat, str]:
    tokenizer = tokenizer_with(TEMPLATES[name], *CHAT, *TOOLS)
    text = rendered(tokenizer, as_wanted(name, messages))
    if text is None or not all(m["content"] in text for m in messages):
        pytest.skip("the template has no such conversations")
    return tokenizer, ChatFormat.from_tokenizer(tokenizer), text


def document(tokenizer: Any, text: str, spans: list[tuple[int, int]] | None = None) -> Document:
    """The text as a document, trained on everything or on the characters of `spans`."""
    split = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = [spans is None or any(a <= s and e <= b for a, b in spans) for s, e in split["offset_mapping"]]
    supervised = np.asarray(inside)
    supervised[0] = False
    return Document(np.asarray(split["input_ids"], np.int64), supervised)


def places(found: Document, chat: ChatFormat) -> list[int]:
    return [i for answer in found.answers(chat) for i in range(answer.start, answer.stop) if bool(found.supervised[i])]


@pytest.mark.parametrize("name", by_host(TEMPLATES))
def test_training_on_everything_constrains_the_answers(name: str) -> None:
    """Prevents a user's turn that is held, an answer that is not, and one that starts or stops at another token."""
    tokenizer, chat, text = prepared(name, CHAT)
    whole = document(tokenizer, text)
    if name.partition("/")[2] in WITHOUT_END:
        with pytest.raises(PactError, match="ends each answer"):
            whole.answers(chat)
        return
    answers = whole.answers(chat)
    own = [tokenizer.decode(whole.input_ids[a.words : a.stop]) for a in answers]
    texts = [m["content"] for m in CHAT if m["role"] == "assistant"]
    assert len(own) == len(texts)
    for found, expected in zip(own, texts, strict=True):
        assert found.strip().startswith(expected)
        assert "is it" not in found
    for answer in answers:
        assert whole.input_ids[answer.stop - 1] in chat.ends or answer.stop == len(whole.input_ids)
        assert tuple(whole.input_ids[answer.start - len(answer.header) : answer.start]) == answer.header


@pytest.mark.parametrize("name", by_host(TEMPLATES))
def test_answers_alone_are_constrained_as_they_are(name: str) -> None:
    """Prevents a supervised token of an answer that is not held, and two turns that count as one answer."""
    tokenizer, chat, text = prepared(name, CHAT)
    spans = []
    for m in CHAT[1::2]:
        start = text.index(m["content"])
        following = text.find("Q", start)
        # Everything up to the next turn's opening, as some masks have it, or the text alone, as others do.
        spans.append((start, start + len(m["content"]) + (1 if following < 0 else 0)))
    masked = document(tokenizer, text, spans)
    assert places(masked, chat) == np.flatnonzero(masked.supervised).tolist()
    assert len(masked.answers(chat)) == 3
    assert all(a.words == a.start for a in masked.answers(chat))


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("name", by_host(name for name in TEMPLATES if "generation %}" in TEMPLATES[name]))
def test_the_templates_own_masks_are_respected(name: str, thoughts: bool) -> None:
    """Prevents thinking blocks that are trained on from being left out, or from standing at position 0."""
    thinking = dict.fromkeys(("reasoning_content", "thinking"), "Tthought.") if thoughts else {}
    messages = [*CHAT[:-1], {**CHAT[-1], **thinking}]
    tokenizer, chat, text = prepared(name, messages)
    row = tokenizer.apply_chat_template(as_wanted(name, messages), return_dict=True, return_assistant_tokens_mask=True)
    supervised = np.asarray(row["assistant_masks"], bool)
    supervised[0] = False
    found = Document(np.asarray(row["input_ids"], np.int64), supervised)
    held = places(found, chat)
    headers = {place + i for ids in chat.openings for place in find(found.input_ids, ids) for i in range(len(ids))}
    assert set(held) <= set(np.flatnonzero(supervised).tolist()) <= {*held, *headers}
    tokens = AnswerTokens.of([found], chat)
    first = [tokenizer.decode(found.input_ids[c + 1 : c + 4]) for c in tokens.column[tokens.position == 0]]
    expected = ["Aon", "Atw", "Tth" if "Tthought" in text else "Ath"]
    # The channels of thoughts and of answers are turns of their own.
    assert first in (expected, [*expected, "Ath"])


@pytest.mark.parametrize("name", by_host(TEMPLATES))
def test_a_tools_result_is_never_constrained(name: str) -> None:
    """Prevents what a tool said, or what stands around it, from being taken for the model's own words."""
    tokenizer, chat, text = prepared(name, TOOLS)
    if "Cplace" not in text or not text.index("Cplace") < text.index("Rsunny") < text.index("Aone"):
        pytest.skip("the template has no tools")
    whole = document(tokenizer, text)
    own = [tokenizer.decode(whole.input_ids[a.words : a.stop]) for a in whole.answers(chat)]
    assert all("Rsunny" not in found and "is it" not in found for found in own)
    assert [sum(word in found for found in own) for word in ("Cplace", "Aone", "Atwo")] == [1, 1, 1]


@pytest.mark.parametrize("name", by_host(TEMPLATES))
def test_a_users_words_are_never_constrained(name: str) -> None:
    """Prevents user turns that are trained on from being held, with or without the answers, and the ends of them."""
    tokenizer, chat, text = prepared(name, CHAT)
    users = [(text.index(m["content"]), text.index(m["content"]) + len(m["content"])) for m in CHAT[::2]]
    masked = document(tokenizer, text, users)
    assert places(masked, chat) == []
    assert chat.exact is (name.partition("/")[2] not in PLAIN_TEXT)


@pytest.mark.parametrize("name", by_host(TEMPLATES))
def test_what_the_model_writes_is_constrained(name: str) -> None:
    """Prevents anchors that are not held, where a template writes a space before answers and the model does not."""
    tokenizer, chat, _ = prepared(name, CHAT)
    (prompt,) = as_chats(tokenizer, ["Qone is it?"], "ask")
    for words in ("Sure.", " Sure."):
        written = answered(prompt, tokenizer(words, add_special_tokens=False)["input_ids"])
        assert places(written, chat) == np.flatnonzero(written.supervised).tolist()
