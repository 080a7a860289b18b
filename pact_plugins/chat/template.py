"""Reading a chat template by rendering conversations of made-up words with it, piece by piece, as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = tuple[int, ...]

SYSTEM, USER, ANSWER, NEXT, THOUGHT, CALL, RESULT, SECOND = (
    f"PACT{name}" for name in ("SYSTEM", "USER", "ANSWER", "NEXT", "THOUGHT", "CALL", "RESULT", "SECOND")
)
"""Stand for the texts of messages when the template is probed; no template treats them specially."""


class TemplateProbe:
    """A tokenizer's chat template, and what can be seen of it.

    Args:
        template: that rows are rendered with, in place of the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer, self._own = tokenizer, {} if template is None else {"chat_template": template}
        self.special = markers(tokenizer)
        self._as_wanted = in_parts if wants_parts(tokenizer, **self._own) else list

    def text(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """The rendered conversation."""
        return str(
            self.tokenizer.apply_chat_template(self._as_wanted(messages), tokenize=False, **self._own, **settings)
        )

    def text_if(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        """The same, or nothing from a template that has no such conversations: none of the data holds any then."""
        try:
            return self.text(messages, **settings)
        except Exception:  # a template may raise anything: it is the model author's program
            return ""

    def ids(self, text: str, start: int, stop: int) -> Ids:
        """The tokens that lie within text[start:stop], as they are when all of the text is split into tokens."""
        if not getattr(self.tokenizer, "is_fast", False):
            return tuple(self.tokenizer(text[start:stop], add_special_tokens=False)["input_ids"])
        split = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(split["input_ids"], split["offset_mapping"], strict=True)
        return tuple(i for i, (first, end) in pairs if start <= first and end <= stop)

    def between(self, text: str, left: str | None, right: str | None = None) -> Ids:
        """The tokens between two of the made-up texts; from the start or up to the end of `text`, where one is None."""
        start = text.index(left) + len(left) if left else 0
        return self.ids(text, start, text.index(right, start) if right else len(text))

    def spelling(self, patterns: Iterable[Ids]) -> Spelling:
        """How the patterns may be split into tokens where the words behind them begin with blanks."""
        ways = {ids: [ids, *sorted(self._before_blanks(ids) - {ids})] for ids in patterns if ids}
        names = {self.tokenizer.convert_ids_to_tokens(way[-1]) for own in ways.values() for way in own}
        names -= {self.tokenizer.convert_ids_to_tokens(i) for i in self.special}
        vocabulary: dict[str, int] = self.tokenizer.get_vocab() if names else {}
        joined = {}
        for token in (token for token in vocabulary if token.startswith(tuple(names))):
            # Of "\n" and "\n\n" the shorter one stands for both.
            name = min((name for name in names if token.startswith(name)), key=len)
            if token != name and not token[len(name) :].strip(_BLANK):
                joined[vocabulary[token]] = vocabulary[name]
        return Spelling(ways, joined)

    def _before_blanks(self, ids: Ids) -> set[Ids]:
        """What becomes of `ids` before words that begin with blanks; the last token may join both."""
        text = self.tokenizer.decode(list(ids))
        if not getattr(self.tokenizer, "is_fast", False) or self.ids(text, 0, len(text)) != ids:
            return set()
        found = set()
        for blank in _BLANKS:
            split = self.tokenizer(f"{text}{blank}A", add_special_tokens=False, return_offsets_mapping=True)
            pairs = zip(split["input_ids"], split["offset_mapping"], strict=True)
            found.add(tuple(i for i, (start, _) in pairs if start < len(text)))
        return found

    def headers_without_thoughts(self, closed: str) -> list[Ids]:
        """The header where thinking is switched off, for templates that know the usual name of the switch."""
        opened = self.text_if([message("user", USER)], add_generation_prompt=True, enable_thinking=False)
        found = self.ids(opened, len(closed), len(opened)) if opened.startswith(closed) else ()
        return [found] if found else []

    def thoughts(self) -> list[Ids]:
        """What stands between a user's message and the thoughts of an answer, if the template renders thoughts."""
        names = ("reasoning_content", "thinking", "reasoning")
        answer = {**message("assistant", ANSWER), **dict.fromkeys(names, THOUGHT)}
        text = self.text_if([message("user", USER), answer])
        return [self.between(text, USER, THOUGHT)] if text.find(USER) < text.find(THOUGHT) else []

    def ends(self, tail: Ids, boundary: Ids, starter: int | None) -> Iterable[int]:
        """Ends of a turn, given what follows its text at the end of a conversation, and before the next turn."""
        if shared := [i for i in until(common(tail, boundary), starter) if i in self.special]:
            return shared[-1:]
        firsts = ([i for i in ids if i in self.special][:1] for ids in (tail, boundary))
        return [i for first in firsts for i in first]

    def tool_turns(self, starter: int | None) -> ToolTurns:
        """What the template writes around the calls and the results of tools; nothing where it has none."""
        for spelling in _SPELLINGS:
            asked = [message("user", USER), _calling(spelling, CALL)]
            whole = self.text_if([*asked, _result(RESULT), message("assistant", ANSWER)])
            if -1 < whole.find(USER) < whole.find(CALL) < whole.find(RESULT) < whole.find(ANSWER):
                break
        else:
            return ToolTurns()
        last = self.text_if(asked)
        tail = self.between(last, CALL) if CALL in last else ()
        boundary = self.between(whole, CALL, RESULT)
        calls = [message("user", USER), _calling(spelling, CALL, NEXT)]
        several = self.text_if([*calls, _result(RESULT), _result(SECOND, 1), message("assistant", ANSWER)])
        inner, gap = (
            self.between(several, one, other) if -1 < several.find(one) < several.find(other) else ()
            for one, other in ((CALL, NEXT), (RESULT, SECOND))
        )
        later = [*asked, _result(RESULT), _calling(spelling, NEXT), _result(SECOND, 1), message("assistant", ANSWER)]
        again = self.text_if(later)
        # What closes each of several calls does not close their turn.
        ends = [i for i in self.ends(tail, boundary, starter) if i not in inner]
        opener = [i for i in boundary if i in self.special and i not in (*tail, *inner)][:1]
        return ToolTurns(
            self.between(whole, USER, CALL),
            self.between(whole, RESULT, ANSWER),
            self.between(again, RESULT, NEXT) if -1 < again.find(RESULT) < again.find(NEXT) else (),
            ends or opener,
            gap,
        )

    def from_last_special(self, ids: Ids) -> Ids:
        """What precedes it after a tool's result may name the call."""
        return ids[max((place for place, i in enumerate(ids) if i in self.special), default=0) :]

    def user_opening(self, start: Ids, boundary: Ids, closing: Ids, starter: int | None) -> Ids:
        """What stands before a user's message, first or later, without the end of the turn before."""
        shared = common(start[::-1], boundary[::-1])[::-1]
        rest = shared[len(closing) :]
        if closing and shared[: len(closing)] == closing and (rest[:1] or (None,))[0] in self.special:
            shared = rest
        return shared[len(shared) - 1 - shared[::-1].index(starter) :] if starter in shared else shared

    def folds_system(self) -> bool:
        """Whether the template writes a system prompt into the user's turn."""
        text = self.text_if([message("system", SYSTEM), message("user", USER)])
        alone = self.text([message("user", USER)])
        return SYSTEM in text and text.startswith(alone.partition(USER)[0])


def markers(tokenizer: Any) -> set[int]:
    """Ids of the tokens that are always split off as they are, whatever stands beside them.

    Tokenizers keep those apart as added tokens. Whether one is flagged as special or has a name says nothing: DeepSeek
    flags none of its roles, and Gemma names none of its turns. Blank ones, such as Gemma's lines, mark nothing.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(i for i, token in added.items() if str(token).strip())}


def writes_date(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template writes the day's date, so that rows rendered on another day are others."""
    return "strftime_now" in str(getattr(tokenizer, "chat_template", None))


def message(role: str, content: str) -> dict[str, Any]:
    """A turn of a conversation, as chat templates take it."""
    return {"role": role, "content": content}


def in_parts(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same turns with each text as a list of one part, beside which images could stand."""
    return [
        {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn.get("content"), str)
        else turn
        for turn in messages
    ]


def wants_parts(tokenizer: Any, **settings: Any) -> bool:
    """Whether the chat template renders lists of parts and leaves plain texts out, as some for images do."""
    turns = [message("user", USER)]

    def shows(turns: list[dict[str, Any]]) -> bool:
        try:
            return USER in tokenizer.apply_chat_template(turns, tokenize=False, **settings)
        except Exception:  # a template may raise anything: it is the model author's program
            return False

    return not shows(turns) and shows(in_parts(turns))


class Spelling(NamedTuple):
    """How a tokenizer spells what a template writes.

    Attributes:
        ways: every way to split a pattern into tokens, itself the first.
        joined: the last token of a pattern, by each token that joins it with blanks behind it.
    """

    ways: Mapping[Ids, Sequence[Ids]]
    joined: Mapping[int, int]

    def every(self, patterns: Iterable[Ids]) -> tuple[Ids, ...]:
        """All ways to spell these, with last tokens in place of those that join them."""
        ways = (way for ids in patterns for way in self.ways.get(ids, ()))
        return tuple(dict.fromkeys(tuple(self.joined.get(i, i) for i in way) for way in ways))


class ToolTurns(NamedTuple):
    """What a template writes around tools.

    Attributes:
        calling: between a user's message and a call.
        after: between a result and the answer.
        again: between a result and another call.
        ends: what closes a turn that calls.
        gap: between two results.
    """

    calling: Ids = ()
    after: Ids = ()
    again: Ids = ()
    ends: Sequence[int] = ()
    gap: Ids = ()


_BLANKS = (*("\n" * n for n in range(1, 10)), " ", "  ", " \n", "\r\n", "\t")
"""What words may begin with."""

_BLANK = " \n\r\t\u2581\u0120\u010a\u010d\u0109"
"""Blanks in a tokenizer's own spelling: as they are, SentencePiece's, and those of tokens of bytes."""

_SPELLINGS = tuple(product((False, True), ({"content": ""}, {"content": None}, {})))
"""Arguments as a text or not, and the content beside a call: templates serve some of them."""


def _calling(spelling: tuple[bool, dict[str, Any]], *texts: str) -> dict[str, Any]:
    """An assistant's turn that calls a tool, once for each text."""
    as_text, content = spelling
    arguments = [json.dumps({"text": text}) if as_text else {"text": text} for text in texts]
    calls = [
        {"type": "function", "id": f"pact0000{i}", "function": {"name": "pact", "arguments": own}}
        for i, own in enumerate(arguments)
    ]
    return {"role": "assistant", **content, "tool_calls": calls}


def _result(text: str, number: int = 0) -> dict[str, Any]:
    return {**message("tool", text), "name": "pact", "tool_call_id": f"pact0000{number}"}


def common(one: Ids, other: Ids) -> Ids:
    """What both begin with."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def until(ids: Ids, token: int | None) -> Ids:
    """What comes before the first `token`; everything, if there is none."""
    return ids[: ids.index(token)] if token in ids else ids


def longest(pattern: Ids, ids: Ids) -> int:
    """How much of the beginning of `pattern` can be found in `ids`."""
    return next(n for n in range(len(pattern), -1, -1) if n == 0 or find(ids, pattern[:n]))


def find(values: Ids | npt.NDArray[np.int64], pattern: Ids) -> list[int]:
    """Every offset at which `pattern` occurs in `values`; none for an empty pattern."""
    array = np.asarray(values)
    if not pattern or len(array) < len(pattern):
        return []
    starts = (array[: len(array) - len(pattern) + 1] == pattern[0]).nonzero()[0]
    return [int(i) for i in starts if tuple(array[i : i + len(pattern)].tolist()) == pattern]


def spans(values: Ids | npt.NDArray[np.int64], patterns: Iterable[Ids]) -> list[tuple[int, int]]:
    """[start, stop) of every place at which one of `patterns` occurs in `values`, pattern by pattern."""
    return [(place, place + len(pattern)) for pattern in patterns for place in find(values, pattern)]
