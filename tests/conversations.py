"""Conversations of every shape as the published tokenizers render them, and what of them is an assistant's.

The truth is computed from the rendered text: the characters of each message, mapped to tokens by their offsets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import markers
from tests.published import tokenizer
from tests.templates import rendered

Bools = npt.NDArray[np.bool_]


class Row(NamedTuple):
    """A rendered conversation, token by token.

    Attributes:
        ids: [L] token ids.
        words: [messages] of [L] True where the token lies in the message's own words.
        ends: [messages] place of the marker that stands first behind the message, or None.
        roles: of the messages.
        joins: [L] True where the token joins an assistant's words with blanks of the template before them.
    """

    ids: npt.NDArray[np.int64]
    words: list[Bools]
    ends: list[int | None]
    roles: list[str]
    joins: Bools

    def of(self, *roles: str) -> Bools:
        return np.any([w for w, role in zip(self.words, self.roles, strict=True) if role in roles], axis=0)

    def ends_of(self, *roles: str) -> Bools:
        places = [p for p, role in zip(self.ends, self.roles, strict=True) if role in roles and p is not None]
        return np.isin(np.arange(len(self.ids)), places)


def row(name: str, messages: Sequence[dict[str, Any]], joining: bool = True) -> Row | None:
    """The conversation as the family's template writes it; None if it writes no such conversations."""
    own = tokenizer(name, joining)
    text = rendered(own, list(messages))
    told = [_texts(m) for m in messages]
    for i, m in enumerate(messages):
        bare = (m["content"] or "").strip()
        if bare != m["content"] and text == rendered(own, [*messages[:i], {**m, "content": bare}, *messages[i + 1 :]]):
            told[i] = _texts({**m, "content": bare})
    if text is None or not _in_order(text, [part for parts in told for part in parts]):
        return None
    split = own(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = np.asarray(split["input_ids"], np.int64)
    first, last = np.asarray(split["offset_mapping"]).T
    marking = markers(own)
    words, ends, at, joins = [], [], 0, np.zeros(len(ids), bool)
    for parts, m in zip(told, messages, strict=True):
        inside = np.zeros(len(ids), bool)
        for part in parts:
            at = text.index(part, at)
            inside |= (first >= at) & (last <= at + len(part))
            joins |= (first < at) & (last > at) & (m["role"] == "assistant")
            at += len(part)
        words.append(inside)
        later = [i for i in np.flatnonzero(first >= at) if int(ids[i]) in marking]
        blank = bool(later) and not text[at : first[later[0]]].strip()
        ends.append(int(later[0]) if blank else None)
    return Row(ids, words, ends, [m["role"] for m in messages], joins)


def _in_order(text: str, parts: list[str]) -> bool:
    """Whether the parts stand one behind the other in the text."""
    at = 0
    for part in parts:
        at = text.find(part, at) + len(part)
        if at < len(part):
            return False
    return True


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


THOUGHT = dict.fromkeys(("reasoning_content", "thinking", "reasoning"), "Tthought.")
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
    "thoughts": [*TWO[:3], {**TWO[3], **THOUGHT}],
    "tools in turn": [
        user("Qone?"),
        calls("", "Cone", as_text=True),
        result("Rone"),
        calls("", "Ctwo", as_text=True),
        result("Rtwo", 1),
        assistant("Aone."),
    ],
    "tools in turn, dict": [
        user("Qone?"),
        calls("", "Cone"),
        result("Rone"),
        calls("", "Ctwo"),
        result("Rtwo", 1),
        assistant("Aone."),
        *TWO[2:],
    ],
    "words before a call": [user("Qone?"), calls("Aone.", "Cone"), result("Rone"), assistant("Atwo.")],
    "a call at the end": [*TWO, user("Qthree?"), calls("", "Cone")],
    "system behind an answer": [*ONE, {"role": "system", "content": "Sone."}, *TWO[2:]],
    "answers in a row": [*ONE, assistant("Atwo."), *TWO[2:3], assistant("Athree.")],
    "requests in a row": [user("Qone?"), user("Qtwo?"), assistant("Aone.")],
    **{
        f"words that begin with {blank!r}": [
            {"role": "system", "content": f"{blank}Sone."},
            *(m for i in range(2) for m in (user(f"{blank}Q{i}?"), assistant(f"{blank}A{i}."))),
        ]
        for blank in ("\n", "\n\n", " ", "  ", "\n \n")
    },
}


def _between(r: Row, first: str, last: str) -> Bools:
    """From inside the first message of one role up to the end of the last one of another."""
    at = np.arange(len(r.ids))
    return (at > np.flatnonzero(r.of(first))[0]) & (at <= np.flatnonzero(r.of(last))[-1])


Labels = Callable[[Row], Bools]
MASKS: dict[str, Labels] = {
    "every token": lambda r: np.ones(len(r.ids), bool),
    "assistant's words": lambda r: r.of("assistant"),
    "assistant's words and what joins them": lambda r: r.of("assistant") | r.joins,
    "assistant's turns": lambda r: r.of("assistant") | r.ends_of("assistant"),
    "user and assistant": lambda r: r.of("assistant", "user") | r.ends_of("assistant", "user"),
    "every end": lambda r: r.of("assistant") | r.ends_of("assistant", "user", "system", "tool"),
    "last turn": lambda r: r.words[-1],
    "from inside the first answer on": lambda r: np.arange(len(r.ids)) > np.flatnonzero(r.of("assistant"))[0],
    "from inside the first answer to the next request's end": lambda r: _between(r, "assistant", "user"),
}


def found(name: str, r: Row, supervised: Bools, joining: bool = True) -> tuple[Bools, Bools]:
    """Which tokens are trained on, the first of a sequence never being, and which are constrained."""
    supervised = supervised.copy()
    supervised[0] = False
    tokens = AnswerTokens.of([Document(r.ids, supervised)], chat_format(name, joining))
    constrained = np.zeros(len(r.ids), bool)
    constrained[tokens.column + 1] = True
    return supervised, constrained


@lru_cache
def chat_format(name: str, joining: bool = True) -> ChatFormat:
    return ChatFormat.from_tokenizer(tokenizer(name, joining))


def left_alone(r: Row) -> Bools:
    """What the safety term must leave alone: words and turn ends of everybody but the assistant."""
    others = ("user", "system", "tool")
    return r.of(*others) | (r.ends_of(*others) & ~r.ends_of("assistant"))
