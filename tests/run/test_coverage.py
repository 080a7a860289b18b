"""How many of the supervised assistant tokens are constrained, counted before the first step."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pact_plugins import PactCallback, PactError
from pact_plugins.chat.answers import CONTINUED, AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import find
from pact_plugins.run.coverage import Coverage, located
from tests import tiny
from tests.contract.hosts import config, trl_trainer
from tests.rows import CHAT, conversation, documents

LONG = ("Why?", "Because of this, and of that, and of much else besides.")


def split(rows: list[Any], size: int) -> list[Document]:
    """The rows cut into pieces of `size` tokens, as `packing_strategy: bfd_split` and `wrapped` cut them."""
    pieces = [(ids[at : at + size], labels[at : at + size]) for ids, labels in rows for at in range(0, len(ids), size)]
    return [replace(d, row=row) for row, piece in enumerate(pieces) for d in documents([piece])]


def counted(docs: list[Document], chat: ChatFormat = CHAT) -> tuple[Coverage, ChatFormat]:
    found = located(docs, chat, tiny.tokenizer().decode)
    assert found.answer_tokens == [len(AnswerTokens.of([d], found.chat)) for d in docs]
    return found.coverage, found.chat


@pytest.mark.parametrize("on_inputs", [False, True])
def test_whole_conversations_are_covered(on_inputs: bool) -> None:
    """Prevents: a guard that stops runs which constrain every word of an assistant."""
    rows = [conversation(("Why?", "So."), ("And?", "Thus.")), conversation(LONG)]
    rows = [conversation(*turns, on_inputs=on_inputs) for turns in ([("Why?", "So."), ("And?", "Thus.")], [LONG])]
    coverage, chat = counted(documents(rows))
    assert (coverage.share, coverage.missed) == (1.0, ())
    assert chat.answers_only is not on_inputs
    assert coverage.constrained == sum(len(answer) + 1 for _, answer in [("", "So."), ("", "Thus."), LONG])
    assert (coverage.other > 0) is on_inputs


@pytest.mark.parametrize("size", [16, 23, 40])
def test_pieces_of_answers_are_constrained_where_labels_tell_whose_they_are(size: int) -> None:
    """Prevents: most of a long answer training without PACT because packing has cut its beginning off."""
    whole = sum(int(d.supervised.sum()) for d in documents([conversation(LONG), conversation(("Why?", "So."))]))
    docs = split([conversation(LONG), conversation(("Why?", "So."))], size)
    coverage, chat = counted(docs)
    assert (coverage.share, coverage.missed) == (1.0, ())
    # The first token of a piece has nothing that predicts it.
    assert whole - len(docs) <= coverage.constrained <= whole
    pieces = [d for d in docs if d.begins_inside(CHAT)]
    assert pieces
    tokens = AnswerTokens.of(pieces, chat)
    assert len(tokens) == sum(int(d.supervised.sum()) for d in pieces)
    assert (tokens.position[tokens.row == pieces[0].row] >= CONTINUED).any()


def test_pieces_whose_turn_nothing_tells_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Prevents: "without an answer: 0" above a run that constrains a third of its answers."""
    docs = split([conversation(LONG, on_inputs=True), conversation(("Why?", "So."), on_inputs=True)], 40)
    coverage, _ = counted(docs)
    (missed,) = coverage.missed
    piece = next(d for d in docs if d.begins_inside(CHAT))
    assert (missed.reason, missed.row) == ("begins inside a turn", piece.row)
    assert tiny.tokenizer().decode(piece.input_ids[:24]) == missed.text
    assert 0 < coverage.share < 0.95
    with pytest.raises(PactError, match=r"begins inside a turn.*pact.min_coverage"):
        coverage.require(0.95)
    with caplog.at_level(logging.WARNING):
        coverage.require(0.1)
    assert "begins inside a turn" in caplog.text


def test_turns_that_are_not_located_are_counted() -> None:
    """Prevents: answers rendered by another template passing for tokens of other turns."""
    ids, labels = conversation(("Why?", "So."), on_inputs=False)
    foreign = [i for i in ids if i != 5]  # <|assistant|>
    supervised = np.asarray([label for i, label in zip(ids, labels, strict=True) if i != 5]) != -100
    docs = [*documents([(ids, labels)]), Document(np.asarray(foreign), supervised, row=1)]
    coverage, _ = counted(docs)
    assert [(m.reason, m.row, m.tokens) for m in coverage.missed] == [
        ("no assistant turn located", 1, int(supervised.sum()))
    ]


def test_turns_that_are_nearly_opened_are_counted_where_all_is_trained_on() -> None:
    """Prevents: "100%" above answers that a token joined to their opening keeps from being located."""
    ids, _ = conversation(("Why?", "So."), ("And?", "Thus."), on_inputs=True)
    (first, second), end = find(ids, CHAT.openings[0]), len(CHAT.openings[0]) - 1
    ids[second + end] = 77  # in place of the line's end
    docs = documents([(ids, ids)])
    coverage, _ = counted(docs)
    (missed,) = coverage.missed
    assert (missed.reason, missed.tokens) == ("no assistant turn located", len("\nThus."))
    assert coverage.constrained == len("So.") + 1
    assert first < second


def test_words_of_a_user_are_never_constrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a fault in locating answers that constrains what users write, in silence."""
    (document,) = documents([conversation(("Why?", "So."), on_inputs=True)])
    wrong = [replace(a, start=4) for a in document.answers(CHAT)]
    monkeypatch.setattr(Document, "answers", lambda _self, _chat: wrong)
    with pytest.raises(PactError, match=r"none of the words of a user; got \d+ such tokens in row 0"):
        counted([document])


@pytest.mark.trl
@pytest.mark.parametrize("own", [True, False], ids=["assistant_only_loss", "every token"])
def test_split_packing_is_constrained_or_stops(own: bool, tmp_path: Path) -> None:
    """Prevents: the run of TRL's issue 5075, which constrained 478 of 1,636 tokens and did not say so."""
    settings = {"packing": True, "packing_strategy": "bfd_split", "max_length": 32, "assistant_only_loss": own}
    trainer = trl_trainer(tiny.llama(), tmp_path, **settings)
    callback = PactCallback(trainer, config(tmp_path))
    if not own:
        with pytest.raises(PactError, match=r"begins inside a turn"):
            callback.on_train_begin()
        return
    callback.on_train_begin()
    assert callback.binding is not None
    preparation = callback.binding.preparation
    assert preparation is not None
    assert preparation.coverage.share == 1.0
    assert preparation.coverage.missed == ()
