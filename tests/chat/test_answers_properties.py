"""Whatever the layout: the same documents, keys and answer tokens; and other content never has the same key."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pact_plugins.chat import dataset
from pact_plugins.chat.answers import IGNORE_INDEX, AnswerTokens, Document, split_documents
from pact_plugins.chat.dataset import read_documents
from pact_plugins.chat.format import ChatFormat
from tests.rows import CHAT, PAD, Row, conversation, padded

TINY_CHAT = ChatFormat(header=(8, 9), ends=(1,))
"""Its tokens are among the few that documents are drawn from, so that headers and ends turn up everywhere."""

TOKENS = st.integers(0, 12)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Any ids with any of them supervised."""
    drawn = draw(st.lists(st.tuples(TOKENS, st.booleans()), min_size=1, max_size=16))
    return [i for i, _ in drawn], [i if supervised else IGNORE_INDEX for i, supervised in drawn]


def packed(groups: list[list[Row]], *, mask_starts: bool, ascending_tail: bool) -> dict[str, Any]:
    """Several documents a row with `position_ids`, as collators pack them: a tail of padding ends the shorter rows."""
    width = max(sum(len(ids) for ids, _ in group) for group in groups) + 2
    batch: dict[str, Any] = {"input_ids": [], "labels": [], "position_ids": []}
    for group in groups:
        ids = [i for row, _ in group for i in row]
        labels = [label for _, row in group for label in ([IGNORE_INDEX, *row[1:]] if mask_starts else row)]
        positions = [i for row, _ in group for i in range(len(row))]
        tail = width - len(ids)
        batch["input_ids"].append(ids + [PAD] * tail)
        batch["labels"].append(labels + [IGNORE_INDEX] * tail)
        batch["position_ids"].append(positions + [i if ascending_tail else 0 for i in range(tail)])
    return batch


@st.composite
def laid_out(draw: st.DrawFn) -> tuple[list[Row], dict[str, Any]]:
    """Documents, and a batch that holds them in another order and one of the layouts of the hosts."""
    data = draw(st.lists(rows(), min_size=1, max_size=5))
    order = draw(st.permutations(data))
    if draw(st.booleans()):
        return data, padded(order, left=draw(st.booleans()), extra=draw(st.integers(0, 3)))
    cuts = sorted(draw(st.sets(st.integers(1, len(order) - 1)))) if len(order) > 1 else []
    groups = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    return data, packed(groups, mask_starts=draw(st.booleans()), ascending_tail=draw(st.booleans()))


def found(batch: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Each document's key, content and answer tokens, in an order of their own."""
    seen = []
    for document in split_documents(batch):
        tokens = AnswerTokens.of([document], TINY_CHAT)
        own = (tokens.column - document.start, tokens.label, tokens.position, tokens.answer)
        content = (document.input_ids, document.supervised, *own)
        seen.append((document.key, *(tuple(values.tolist()) for values in content)))
    return sorted(seen)


@given(laid_out())
def test_no_layout_changes_what_is_constrained(drawn: tuple[list[Row], dict[str, Any]]) -> None:
    """Prevents cache misses and shifted answers under any packing, padding or shuffling."""
    data, batch = drawn
    assert found(batch) == sorted(part for row in data for part in found({"input_ids": [row[0]], "labels": [row[1]]}))


@given(laid_out())
def test_answer_tokens_stand_where_they_say(drawn: tuple[list[Row], dict[str, Any]]) -> None:
    """Prevents a hidden state that predicts another token, a token held twice, and one that is not trained on."""
    _, batch = drawn
    ids, labels = np.asarray(batch["input_ids"]), np.asarray(batch["labels"])
    tokens = AnswerTokens.of(split_documents(batch), TINY_CHAT)
    assert (ids[tokens.row, tokens.column + 1] == tokens.label).all()
    assert (labels[tokens.row, tokens.column + 1] == tokens.label).all()
    places = tokens.flat(ids.shape[1])
    assert len(set(places.tolist())) == len(places)
    assert tokens.counts.sum() == len(tokens)
    for answer in range(int(tokens.answer.max(initial=-1)) + 1):
        mine = tokens.answer == answer
        assert len(set((tokens.column - tokens.position)[mine].tolist())) == 1
        assert tokens.position[mine][0] <= 0


OPENING, LEAD, END, USER = (50, 51), (52, 53), 54, (55,)
CHATTING = ChatFormat(
    (*OPENING, *LEAD), openings=(OPENING,), leads=(LEAD,), ends=(END,), users=(USER,), trailer=(57,), exact=True
)


@st.composite
def trained_conversations(draw: st.DrawFn) -> tuple[Row, list[int]]:
    """A conversation under one of the masks of the hosts, and where its supervised assistant tokens stand."""
    mask = draw(st.sampled_from(["everything", "assistants", "both roles", "all ends", "users", "parts"]))
    pieces: list[tuple[int, bool, bool]] = [(0, False, False)]  # id, supervised, the assistant's
    words = st.lists(TOKENS, min_size=1, max_size=4)
    for role in ("user", *draw(st.lists(st.sampled_from(["user", "tool", "assistant"]), max_size=7))):
        own = role == "assistant"
        trained = draw(st.booleans())  # `train` of the message, its weight
        content = {
            "everything": True,
            "assistants": own and trained,
            "both roles": trained,
            "all ends": own and trained,
            "users": not own,
            "parts": own and trained,
        }[mask]
        ends = mask in ("everything", "all ends") or content
        opening = OPENING if own else (*USER, 56) if role == "tool" else USER
        pieces += [(i, mask == "everything", False) for i in opening]
        pieces += [(i, content, True) for i in (LEAD if own and draw(st.booleans()) else ())]
        for i in draw(words):
            pieces.append((i, content and not (mask == "parts" and draw(st.booleans())), own))
        pieces += [(END, ends, own), (57, mask == "everything" or (own and content), own and mask != "everything")]
    ids = [i for i, _, _ in pieces]
    labels = [i if supervised else IGNORE_INDEX for i, supervised, _ in pieces]
    return (ids, labels), [n for n, (_, supervised, own) in enumerate(pieces) if supervised and own]


@given(trained_conversations())
def test_constrained_are_exactly_the_supervised_assistant_tokens(drawn: tuple[Row, list[int]]) -> None:
    """Prevents user turns, tool results and untrained messages from being held, and answers from being missed."""
    row, expected = drawn
    tokens = AnswerTokens.of(split_documents({"input_ids": [row[0]], "labels": [row[1]]}), CHATTING)
    assert (tokens.column + 1).tolist() == expected
    starts = [place + 2 for place, i in enumerate(row[0]) if i == OPENING[0]]
    held = [sum(start <= place for start in starts) for place in expected]
    assert len(set(held)) == len(set(tokens.answer.tolist()))


def _document(row: Row) -> Document:
    supervised = np.asarray([label != IGNORE_INDEX for label in row[1]])
    supervised[0] = False
    return Document(np.asarray(row[0], np.int64), supervised)


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[Document, Document]:
    """Two documents that are equal or differ in little: a token, a label, an end."""
    ids, labels = draw(rows())
    at = draw(st.integers(0, len(ids) - 1))
    other = list(zip(ids, labels, strict=True))
    match draw(st.sampled_from(["id", "label", "cut", "longer", "swap", "any"])):
        case "id":
            other[at] = (draw(TOKENS), other[at][1])
        case "label":
            other[at] = (ids[at], IGNORE_INDEX if labels[at] != IGNORE_INDEX else ids[at])
        case "cut":
            other = other[: at + 1]
        case "longer":
            other += draw(st.sampled_from([[(0, IGNORE_INDEX)], [(0, 0)], [(PAD, IGNORE_INDEX)] * 8]))
        case "swap":
            other[at], other[0] = other[0], other[at]
        case _:
            other = list(zip(*draw(rows()), strict=True))
    return _document((ids, labels)), _document(([i for i, _ in other], [label for _, label in other]))


@given(neighbours())
def test_keys_are_equal_exactly_for_equal_content(pair: tuple[Document, Document]) -> None:
    """Prevents a document that is held to another's reference, or an equal one that is not found again."""
    one, other = pair
    equal = np.array_equal(one.input_ids, other.input_ids) and np.array_equal(one.supervised, other.supervised)
    assert (one.key == other.key) == equal


TEXTS = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), st.data())
def test_exactly_the_answers_that_are_trained_on_are_constrained(
    turns: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Prevents a user's words being held to the reference, and answers that are trained on and not held."""
    ids, labels = conversation(*turns)
    answers = [i for i, label in enumerate(labels) if label != IGNORE_INDEX]
    everything = AnswerTokens.of(split_documents({"input_ids": [ids], "labels": [ids]}), CHAT)
    assert (everything.column + 1).tolist() == answers
    runs = np.split(np.asarray(answers), np.flatnonzero(np.diff(answers) > 1) + 1)
    assert len(runs) == len(turns)
    trained = [run for run in runs if data.draw(st.booleans())]
    assume(trained)
    wanted = np.concatenate(trained)
    some = np.full(len(ids), IGNORE_INDEX)
    some[wanted] = np.asarray(ids)[wanted]
    tokens = AnswerTokens.of(split_documents({"input_ids": [ids], "labels": [some]}), CHAT)
    assert (tokens.column + 1).tolist() == wanted.tolist()
    assert [int((tokens.answer == i).sum()) for i in range(len(trained))] == [len(run) for run in trained]


@st.composite
def tables(draw: st.DrawFn) -> list[dict[str, list[int]]]:
    """Rows of a training set, of one document or several, with the columns that trainers leave."""
    extra = draw(st.sampled_from([(), ("position_ids",), ("attention_mask",), ("position_ids", "attention_mask")]))
    made = []
    for group in draw(st.lists(st.lists(rows(), min_size=1, max_size=3), min_size=1, max_size=5)):
        ids, labels = ([i for row in group for i in row[part]] for part in (0, 1))
        row = {"input_ids": ids, "labels": labels, "position_ids": [i for r, _ in group for i in range(len(r))]}
        hidden = draw(st.integers(0, len(ids)))
        row["attention_mask"] = [1] * (len(ids) - hidden) + [0] * hidden
        made.append({name: row[name] for name in ("input_ids", "labels", *extra)})
    return made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables(), st.integers(1, 6))
def test_columns_are_read_as_rows_are(
    monkeypatch: pytest.MonkeyPatch, table: list[dict[str, list[int]]], at_a_time: int
) -> None:
    """Prevents a data set read at once from giving other documents than its rows in the trainer's batches."""
    monkeypatch.setattr(dataset, "ROWS_AT_A_TIME", at_a_time)
    read = list(read_documents(Dataset.from_list(table)))
    split = [(number, d) for number, row in enumerate(table) for d in split_documents(row)]
    assert [(d.row, d.start, d.key) for d in read] == [(number, d.start, d.key) for number, d in split]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(rows(), min_size=1, max_size=3), min_size=1, max_size=4), st.integers(1, 5))
def test_packed_rows_are_read_by_their_lengths(
    monkeypatch: pytest.MonkeyPatch, groups: list[list[Row]], at_a_time: int
) -> None:
    """Prevents boundaries of TRL's packed rows (`seq_lengths`) drawn elsewhere than in its collator."""
    monkeypatch.setattr(dataset, "ROWS_AT_A_TIME", at_a_time)
    table = [
        {
            "input_ids": [i for ids, _ in group for i in ids],
            "labels": [label for _, labels in group for label in labels],
            "seq_lengths": [len(ids) for ids, _ in group],
        }
        for group in groups
    ]
    alone = [
        d for group in groups for ids, labels in group for d in split_documents({"input_ids": ids, "labels": labels})
    ]
    assert [d.key for d in read_documents(Dataset.from_list(table))] == [d.key for d in alone]
