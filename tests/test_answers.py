"""Documents, answers and keys, whatever the batch's layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_plugins.answers import IGNORE_INDEX, AnswerTokens, Document, split_documents
from pact_plugins.chat_format import ChatFormat
from pact_plugins.errors import PactError
from tests import tiny

CHAT = ChatFormat.from_tokenizer(tiny.tokenizer())
Row = tuple[list[int], list[int]]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A prompt of at least two tokens and one to three answers with masked turns between them."""
    ids, labels = [0, 7], [IGNORE_INDEX] * 2
    for _ in range(draw(st.integers(1, 3))):
        prompt = draw(st.lists(st.integers(6, 200), min_size=1, max_size=5))
        answer = draw(st.lists(st.integers(6, 200), min_size=1, max_size=5))
        ids += prompt + answer
        labels += [IGNORE_INDEX] * len(prompt) + answer
    return ids, labels


def alone(row: Row) -> dict[str, Any]:
    return {"input_ids": [row[0]], "labels": [row[1]]}


def summary(batch: dict[str, Any]) -> list[tuple[bytes, list[int], list[int]]]:
    """Key, labels and positions of each document's answer tokens, in an order that the layout cannot change."""
    tokens = AnswerTokens.of(split_documents(batch), CHAT)
    cuts = np.cumsum(tokens.counts)[:-1]
    parts = zip(tokens.documents, np.split(tokens.label, cuts), np.split(tokens.position, cuts), strict=True)
    return sorted((d.key, a.tolist(), b.tolist()) for d, a, b in parts)


@settings(max_examples=300, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_packing_and_padding_change_nothing(data: list[Row], left: bool, label_starts: bool) -> None:
    """Prevents cache misses, and answers that shift, when only the layout of a batch differs."""
    expected = sorted(part for row in data for part in summary(alone(row)))
    packed_labels = [[*row[1]] for row in data]
    if label_starts:
        for row, labels in zip(data, packed_labels, strict=True):
            labels[0] = row[0][0]
    packed = {
        "input_ids": [[i for row in data for i in row[0]]],
        "labels": [[i for labels in packed_labels for i in labels]],
        "position_ids": [[i for row in data for i in range(len(row[0]))]],
    }
    assert summary(packed) == expected
    width = max(len(row[0]) for row in data) + 2

    def fill(values: list[int], value: int) -> list[int]:
        padding = [value] * (width - len(values))
        return padding + values if left else values + padding

    padded = {
        "input_ids": [fill(row[0], 2) for row in data],
        "labels": [fill(row[1], IGNORE_INDEX) for row in data],
        "attention_mask": [fill([1] * len(row[0]), 0) for row in data],
    }
    assert summary(padded) == expected


def test_the_hidden_state_stands_one_column_to_the_left() -> None:
    """Prevents a loss on the token after the one that is meant."""
    tokens = AnswerTokens.of(split_documents(alone(([0, 7, 8, 9], [IGNORE_INDEX, IGNORE_INDEX, 8, 9]))), CHAT)
    assert tokens.column.tolist() == [1, 2]
    assert tokens.label.tolist() == [8, 9]


def test_training_on_inputs_constrains_the_answers_alone() -> None:
    """Prevents user turns from being constrained when every token is a target."""
    tokenizer = tiny.tokenizer()
    messages = tiny.conversations(1, turns=2)[0]["messages"]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    tokens = AnswerTokens.of(split_documents({"input_ids": [ids], "labels": [ids]}), CHAT)
    answers = [tokenizer.decode(tokens.label[tokens.answer == i]) for i in range(2)]
    assert answers == [m["content"] + tokenizer.eos_token for m in messages if m["role"] == "assistant"]
    assert tokens.position[tokens.answer == 1][0] == 0


def test_training_on_inputs_without_a_header_stops() -> None:
    """Prevents a whole conversation from being taken for one answer."""
    with pytest.raises(PactError, match="chat template"):
        AnswerTokens.of(split_documents({"input_ids": [[7, 8, 9]], "labels": [[7, 8, 9]]}), ChatFormat())


def test_a_batch_without_answers_is_empty() -> None:
    """Prevents a crash on a micro-batch whose answers were all cut off."""
    assert len(AnswerTokens.of(split_documents(alone(([7, 8], [IGNORE_INDEX] * 2))), CHAT)) == 0


def test_header_text_inside_an_answer_opens_none() -> None:
    """Prevents tokens that are constrained twice, at two positions."""
    header, end = (50, 51), 1
    ids = np.asarray([0, *header, 60, *header, 61, end, 70, *header, 62, end])
    document = Document(ids, np.arange(len(ids)) > 0)
    assert document.answers(ChatFormat(header, end)) == [(3, 8), (11, 13)]
