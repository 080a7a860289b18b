"""Published tokenizers: every token of an assistant that is trained on is constrained, and no other.

The truth is computed from the rendered text: the characters of each message, mapped to tokens by their offsets.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from pact_plugins.answers import AnswerTokens, Document
from pact_plugins.chat_format import ChatFormat
from pact_plugins.chat_template import markers
from pact_plugins.config import PactConfig
from pact_plugins.host_trainer import training_documents, training_template
from pact_plugins.preparation import find_answers
from tests import tiny
from tests.contract.hosts import common
from tests.published import FAMILIES, tokenizer
from tests.templates import rendered

if find_spec("trl"):
    from trl import SFTConfig, SFTTrainer

Bools = npt.NDArray[np.bool_]
PRESENT = [name for name, family in FAMILIES.items() if family.source is not None]
PLAIN_TEXT = {"Llama 2", "OLMo 2"}
"""Families that open turns with plain text, which may be split into other tokens beside other words."""


class Row(NamedTuple):
    """A rendered conversation, token by token.

    Attributes:
        ids: [L] token ids.
        words: [messages] of [L] True where the token lies in the message's own words.
        ends: [messages] place of the marker that stands first behind the message, or None.
        roles: of the messages.
    """

    ids: npt.NDArray[np.int64]
    words: list[Bools]
    ends: list[int | None]
    roles: list[str]

    def of(self, *roles: str) -> Bools:
        return np.any([w for w, role in zip(self.words, self.roles, strict=True) if role in roles], axis=0)

    def ends_of(self, *roles: str) -> Bools:
        places = [p for p, role in zip(self.ends, self.roles, strict=True) if role in roles and p is not None]
        return np.isin(np.arange(len(self.ids)), places)


def row(name: str, messages: Sequence[dict[str, Any]]) -> Row:
    """The conversation as the family's template writes it; skipped if it writes no such conversations."""
    own = tokenizer(name)
    text = rendered(own, list(messages))
    told = [_texts(m) for m in messages]
    if text is None or not all(part in text for parts in told for part in parts):
        pytest.skip("the template has no such conversations")
    split = own(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.asarray(split["input_ids"], np.int64)
    first, last = np.asarray(split["offset_mapping"]).T
    words, ends, at = [], [], 0
    for parts in told:
        inside = np.zeros(len(ids), bool)
        for part in parts:
            at = text.index(part, at)
            inside |= (first >= at) & (last <= at + len(part))
            at += len(part)
        words.append(inside)
        later = [i for i in np.flatnonzero(first >= at) if int(ids[i]) in markers(own)]
        blank = bool(later) and not text[at : first[later[0]]].strip()
        ends.append(int(later[0]) if blank else None)
    return Row(ids, words, ends, [m["role"] for m in messages])


def _texts(message: dict[str, Any]) -> list[str]:
    """What a message says, in the order in which templates write it."""
    arguments = [c["function"]["arguments"] for c in message.get("tool_calls") or ()]
    called = [json.loads(a)["place"] if isinstance(a, str) else a["place"] for a in arguments]
    return [text for text in (message.get("content"), *called) if text]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def calls(content: str | None, *places: str, as_text: bool = False) -> dict[str, Any]:
    made = [{"name": "weather", "arguments": json.dumps({"place": p}) if as_text else {"place": p}} for p in places]
    functions = [{"type": "function", "id": f"call0000{i}", "function": f} for i, f in enumerate(made)]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def result(text: str, number: int = 0) -> dict[str, Any]:
    return {"role": "tool", "content": text, "name": "weather", "tool_call_id": f"call0000{number}"}


ONE = [user("Qone?"), assistant("Aone.")]
TWO = [*ONE, user("Qtwo?"), assistant("Atwo.")]
SHAPES = {
    "one turn": ONE,
    "several turns": [*TWO, user("Qthree?"), assistant("Athree.")],
    "system": [{"role": "system", "content": "Sone."}, *TWO],
    **{
        f"tool, {'text' if as_text else 'dict'}, content {content!r}": [
            user("Qone?"),
            calls(content, "Cone", as_text=as_text),
            result("Rone"),
            assistant("Aone."),
            user("Qtwo?"),
            assistant("Atwo."),
        ]
        for as_text in (False, True)
        for content in ("", None)
    },
    "parallel tools": [
        user("Qone?"),
        calls("", "Cone", "Ctwo"),
        result("Rone"),
        result("Rtwo", 1),
        assistant("Aone."),
        user("Qtwo?"),
        assistant("Atwo."),
    ],
}
Labels = Callable[[Row], Bools]
MASKS: dict[str, Labels] = {
    "every token": lambda r: np.ones(len(r.ids), bool),
    "assistant's words": lambda r: r.of("assistant"),
    "assistant's turns": lambda r: r.of("assistant") | r.ends_of("assistant"),
    "user and assistant": lambda r: r.of("assistant", "user") | r.ends_of("assistant", "user"),
    "every end": lambda r: r.of("assistant") | r.ends_of("assistant", "user", "system", "tool"),
    "last turn": lambda r: r.words[-1],
}


def found(name: str, r: Row, supervised: Bools) -> tuple[Bools, Bools]:
    """Which tokens are trained on, the first of a sequence never being, and which are constrained."""
    supervised = supervised.copy()
    supervised[0] = False
    tokens = AnswerTokens.of([Document(r.ids, supervised)], ChatFormat.from_tokenizer(tokenizer(name)))
    constrained = np.zeros(len(r.ids), bool)
    constrained[tokens.column + 1] = True
    return supervised, constrained


def check(name: str, r: Row, mask: str) -> None:
    supervised, constrained = found(name, r, MASKS[mask](r))
    assert not (constrained & ~supervised).any()
    others = r.of("user", "system", "tool") | (r.ends_of("user", "system", "tool") & ~r.ends_of("assistant"))
    if name in PLAIN_TEXT and mask in ("user and assistant", "every end"):
        return  # openings in plain text can be missed, so labels that leave gaps are trusted
    own = tokenizer(name)
    assert not (constrained & others).any(), own.decode(r.ids[constrained & others])
    missed = supervised & r.of("assistant") & ~constrained
    assert not missed.any(), own.decode(r.ids[missed])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PRESENT)
def test_an_assistants_tokens_and_no_others(name: str, shape: str, mask: str) -> None:
    """Prevents: user words, tool results and turn ends that are constrained, and answers that are not, in silence."""
    check(name, row(name, SHAPES[shape]), mask)


THOUGHT = dict.fromkeys(("reasoning_content", "thinking"), "Tthought.")


@pytest.mark.trl
@pytest.mark.parametrize("own", [True, False], ids=["assistant_only_loss", "every token"])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.template.startswith("trl/")])
def test_rows_of_trl_are_covered(name: str, own: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Prevents: advice on a template that TRL does not render with, and thoughts or answers that are left out."""
    messages = [*ONE[:1], {**ONE[1], **THOUGHT}, *TWO[2:3], {**TWO[3], **THOUGHT}]
    tokens = tokenizer(name)
    settings = {**common(tmp_path), "assistant_only_loss": own, "max_length": 2048}
    try:
        trainer = SFTTrainer(
            model=tiny.llama(vocab_size=len(tokens)),
            args=SFTConfig(**settings),
            train_dataset=Dataset.from_list([{"messages": messages}]),
            processing_class=copy.deepcopy(tokens),
        )
    except ValueError as error:
        pytest.skip(f"TRL does not train on this template: {error}")
    documents = list(training_documents(trainer))
    template = training_template(trainer)
    found = find_answers(documents, trainer.processing_class, PactConfig(), template)
    assert (found.coverage.share, found.coverage.missed) == (1.0, ())
    (document,) = documents
    constrained = AnswerTokens.of([document], found.chat)
    text = tokens.decode(constrained.label)
    told = tokens.decode(document.input_ids)
    assert [word in text for word in ("Aone.", "Atwo.", "Qone?", "Qtwo?")] == [True, True, False, False]
    assert text.count("Tthought.") == told.count("Tthought.")
    if own:
        assert "writes an answer differently" not in caplog.text


WORDS = st.text("abc.?\n é你", min_size=1, max_size=12).map(lambda text: f"{text}!").map(str.strip)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)


@given(name=st.sampled_from(PRESENT), turns=TURNS, system=st.none() | WORDS, mask=st.sampled_from(sorted(MASKS)))
def test_any_conversation(name: str, turns: list[tuple[str, str]], system: str | None, mask: str) -> None:
    """Prevents: what holds for the words above, and not for others."""
    # Each message is found again by its number.
    messages = [m for i, (q, a) in enumerate(turns) for m in (user(f"Q{i}{q}"), assistant(f"A{i}{a}"))]
    if system is not None:
        messages.insert(0, {"role": "system", "content": f"S{system}"})
    try:
        r = row(name, messages)
    except pytest.skip.Exception:
        return
    check(name, r, mask)
