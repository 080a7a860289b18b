"""Documents, answers and keys, whatever the batch's layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pact_plugins.chat.answers import IGNORE_INDEX, AnswerTokens, Document, split_documents
from pact_plugins.chat.format import ChatFormat
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
    assert summary({**packed, "attention_mask": [[1] * len(packed["input_ids"][0])]}) == expected
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
    assert [(a.start, a.stop) for a in document.answers(ChatFormat(header, ends=(end,)))] == [(3, 8), (11, 13)]


OPENING, LEAD, THINK, END = (50, 51), (52, 53), 52, 1
THINKER = ChatFormat((*OPENING, THINK), openings=(OPENING,), leads=((THINK,), LEAD), ends=(END,))


@pytest.mark.parametrize("supervised_from", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("lead", [(), (THINK,), LEAD])
def test_position_0_is_the_first_of_an_answers_own_words(lead: tuple[int, ...], supervised_from: int) -> None:
    """Prevents an empty thinking block from being taken for what the model chose to open its answer with."""
    ids = np.asarray([0, 7, *OPENING, *lead, 60, 61, 62, END])
    start, words = 2 + supervised_from, 4 + len(lead)
    document = Document(ids, np.arange(len(ids)) >= start)
    (answer,) = document.answers(THINKER)
    # The whole opening is a header even if it is trained on; a part of it is trained on as the answer is.
    first = 4 if supervised_from == 0 else start
    assert (answer.start, answer.stop, answer.words) == (first, len(ids), max(first, words))
    if first <= words:
        assert answer.header == tuple(ids[2:first])
    else:
        assert answer.header == THINKER.header
    tokens = AnswerTokens.of([document], THINKER)
    assert tokens.position.tolist() == [i - answer.words for i in range(first, len(ids))]


def test_a_turn_with_a_gap_is_one_answer() -> None:
    """Prevents a second start in the middle of a turn of which a part is not trained on."""
    ids = np.asarray([0, 7, *OPENING, 60, 61, 62, 63, END, 7, *OPENING, 64, END])
    supervised = np.isin(ids, [60, 62, 63, 64, END])
    tokens = AnswerTokens.of([Document(ids, supervised)], THINKER)
    assert tokens.label.tolist() == [60, 62, 63, END, 64, END]
    assert tokens.position.tolist() == [0, 2, 3, 4, 0, 1]
    assert tokens.answer.tolist() == [0, 0, 0, 0, 1, 1]


def test_turns_without_an_end_stop_at_the_next_one() -> None:
    """Prevents user turns that are taken for answers where no token ends an answer."""
    chat = ChatFormat(OPENING, users=((54,),), exact=True)
    ids = np.asarray([0, 54, 7, *OPENING, 60, 54, 7, *OPENING, 61])
    users = Document(ids, ids == 7)
    assert users.answers(chat) == []
    answers = Document(ids, np.isin(ids, [60, 61]))
    assert [(a.start, a.stop) for a in answers.answers(chat)] == [(5, 6), (10, 11)]
    with pytest.raises(PactError, match="ends each answer"):
        Document(ids, np.arange(len(ids)) > 0).answers(chat)


@pytest.mark.parametrize("exact", [False, True])
def test_labels_are_trusted_where_openings_can_be_missed(exact: bool) -> None:
    """Prevents an answer from being missed because its opening in plain text was split into tokens otherwise."""
    chat = ChatFormat(OPENING, ends=(END,), users=((54,),), exact=exact)
    ids = np.asarray([0, 54, 7, *OPENING, 60, END, 54, 7, 58, 61, END])
    document = Document(ids, np.isin(ids, [60, 61, END]))
    assert [(a.start, a.stop) for a in document.answers(chat)] == [(5, 7), (10, 12)][: 1 if exact else 2]
    alone = Document(ids[7:], np.isin(ids[7:], [61, END]))
    assert len(alone.answers(chat)) == (0 if exact else 1)


def test_an_opening_at_the_very_start_opens_a_turn() -> None:
    """Prevents a whole conversation from being taken for an answer that began before its first token."""
    ids = np.asarray([*OPENING, 60, END, 7, 8])
    assert [(a.start, a.stop) for a in Document(ids, np.arange(6) > 0).answers(THINKER)] == [(2, 4)]


def test_a_hidden_token_is_told_from_one_that_is_seen() -> None:
    """Prevents: the reference of whole rows, where a collator takes tokens that equal the padding for padding."""
    batch = {"input_ids": [[0, 7, 2, 8, 9]], "labels": [[IGNORE_INDEX] * 3 + [8, 9]]}
    (whole,) = split_documents({**batch, "attention_mask": [[1, 1, 1, 1, 1]]})
    (holed,) = split_documents({**batch, "attention_mask": [[1, 1, 0, 1, 1]]})
    assert whole.seen is None
    assert holed.seen is not None
    assert holed.seen.tolist() == [True, True, False, True, True]
    assert holed.key != whole.key
