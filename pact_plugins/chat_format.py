"""What a chat template puts around an assistant turn, as token ids.

Words: the *header* is what the generation prompt adds: the tokens after which the model begins to write. The *opening*
is the part of it that stands before every assistant turn of a rendered conversation. Templates differ in what comes
between the opening and the turn's own words, its *lead*: nothing, the start of a thinking block, an empty one, the name
of a channel. An *end* is a token that closes an assistant turn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pact_plugins.config import Prefix
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest

Ids = tuple[int, ...]

_SYSTEM, _USER, _ANSWER, _NEXT, _THOUGHT, _CALL, _RESULT = (
    f"PACT{name}" for name in ("SYSTEM", "USER", "ANSWER", "NEXT", "THOUGHT", "CALL", "RESULT")
)
"""Stand for the texts of messages when the template is probed; no template treats them specially."""


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses what is no tokenizer: nothing at all, or the processor of a multimodal model.

    Raises:
        PactError: it cannot turn text into ids and back, or does not say which ids are special.
    """
    if tokenizer is None or not all(hasattr(tokenizer, name) for name in ("get_vocab", "decode", "all_special_ids")):
        inner = hasattr(tokenizer, "tokenizer")
        raise PactError(
            expected="a trainer whose `processing_class` is the model's tokenizer",
            got=f"a {type(tokenizer).__name__}" if tokenizer is not None else "a trainer without one",
            consequence="PACT could not tell where answers begin, or which tokens to hold.",
            remedy=f"Make the trainer with `processing_class={'processor.' if inner else ''}tokenizer`.",
        )


@dataclass(frozen=True)
class ChatFormat:
    """The tokens that open and close an assistant turn, found by rendering conversations of made-up words.

    Attributes:
        header: ids that the template adds before an answer: the difference between rendering a conversation with and
            without the generation prompt. Where there is no such difference, what the template writes between a user's
            message and the answer, without what closes the user's turn (noted). Empty without a template.
        openings: ids of which one stands before every assistant turn: the beginning of the header, and another one if
            turns go on differently after a tool's result. Empty for the header itself.
        leads: ids that the template may put between an opening and the turn's own words.
        ends: ids that close a turn: after a last answer, before a user's turn, after a tool call. Of several special
            tokens the last that is no part of the next turn. Empty if the template adds no special token.
        user: ids that open a user's turn.
        bos: id of the tokenizer's first token of a sequence.
        prefix: what stands before an answer whose prompt is removed (`before`).
        notes: what the user should know of the template.
        history: what the user should know of it if a sequence holds several answers.
    """

    header: Ids = ()
    openings: tuple[Ids, ...] = ()
    leads: tuple[Ids, ...] = ()
    ends: Ids = ()
    user: Ids = ()
    bos: int | None = None
    prefix: Prefix = "header"
    notes: tuple[str, ...] = field(default=(), compare=False)
    history: tuple[str, ...] = field(default=(), compare=False)

    def fingerprint(self) -> str:
        """Identity of what is found where, and of what stands before an answer whose prompt is removed."""
        return digest([value for name, value in asdict(self).items() if name not in ("notes", "history")])

    def require_header(self, purpose: str) -> Ids:
        """The header, or an error saying that `purpose` cannot do without it."""
        if not self.header:
            raise PactError(
                expected="a chat template, whose tokens mark the start of an answer",
                got="a tokenizer without one, or a template that puts nothing before an answer",
                consequence=f"PACT could not {purpose}.",
                remedy="Set the model's own chat template, or use data whose labels mask everything but the answers "
                "together with `gate: false`.",
            )
        return self.header

    def before(self, input_ids: npt.NDArray[np.int64]) -> Ids:
        """What the view without the prompt keeps of a sequence before the header of each answer (`gate.prefix`).

        `header`: nothing. `bos`: the sequence's first token, if it is the tokenizer's. `bos+system`: everything before
        the first user's turn, which is the system prompt and what a template puts before conversations.
        """
        if self.prefix == "header":
            return ()
        start = 1 if len(input_ids) and input_ids[0] == self.bos else 0
        if self.prefix == "bos+system":
            start = next(iter(find(input_ids, self.user)), start)
        return tuple(input_ids[:start].tolist())

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, prefix: Prefix = "header") -> ChatFormat:
        """Reads everything off the tokenizer's chat template.

        Raises:
            PactError: the template refuses a plain conversation of one user turn and one assistant turn, or leaves
                the text of a message out.
        """
        if getattr(tokenizer, "chat_template", None) is None:
            return cls(prefix=prefix)
        return _Probe(tokenizer).found(prefix)


class _Probe:
    """A tokenizer's template, rendered with made-up messages."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)

    def found(self, prefix: Prefix) -> ChatFormat:
        user, answer, following = _message("user", _USER), _message("assistant", _ANSWER), _message("user", _NEXT)
        try:
            closed, opened = (self.text([user], add_generation_prompt=added) for added in (False, True))
            last, longer = self.text([user, answer]), self.text([user, answer, following])
        except Exception as error:  # a template may raise anything: it is the model author's program
            raise PactError(
                expected="a chat template that renders user turns and assistant turns in alternation",
                got=f"{type(error).__name__}: {error}",
                consequence="PACT could not tell where answers begin.",
                remedy="Check the tokenizer's `chat_template` with `tokenizer.apply_chat_template`.",
            ) from error
        if missing := [text for text in (_USER, _ANSWER, _NEXT) if text not in longer]:
            raise PactError(
                expected="a chat template that renders the text of each message",
                got=f"one that leaves out {', '.join(missing)} of the roles user, assistant, user",
                consequence="PACT could not tell where answers begin, and would ask the model without the request.",
                remedy="Set a `chat_template` for messages whose `content` is a text; templates of models that see "
                "images want a list there.",
            )
        notes: list[str] = []
        gaps = [self.between(text, _USER, _ANSWER) for text in (last, longer)]
        tail, boundary = self.between(last, _ANSWER), self.between(longer, _ANSWER, _NEXT)
        start = self.between(closed, None, _USER)
        starter = next((i for i in start if i in self.special and i != self.tokenizer.bos_token_id), None)
        closing = _until(_common(tail, boundary), starter)
        header = self.ids(opened, len(closed), len(opened)) if opened.startswith(closed) else ()
        if not header:
            header = gaps[0][len(_common(gaps[0], closing)) :]
            if header:
                notes.append(
                    "adds no generation prompt after a user's turn: taken for an answer's header is "
                    f"{self.tokenizer.decode(list(header))!r}, what it writes between a user's message and an answer"
                )
        headers = [header, *self.headers_without_thoughts(closed)]
        thoughts = self.thoughts()
        opening = header[: min(_longest(header, gap) for gap in (*gaps, *headers, *thoughts))]
        if header and not opening:
            notes.append(
                f"opens rendered answers otherwise than its generation prompt, {self.tokenizer.decode(list(header))!r}"
            )
            opening = gaps[0][len(_common(gaps[0], closing)) :]
        # Turns that call a tool may go on otherwise from an earlier token.
        calling, after_tools, tool_ends = self.tool_turns(starter)
        shorter = _common(gaps[0], calling)
        if calling and not find(calling, opening) and shorter and not find(boundary, shorter):
            opening = shorter
        openings = opening, *([] if find(after_tools, opening) else [self.from_last_special(after_tools)])
        ends = self.ends(tail, boundary, starter)
        leads = {gap[place + len(opening) :] for gap in (*gaps, *headers, *thoughts) for place in find(gap, opening)}
        history = ()
        if not longer.startswith(last):
            history = (
                "writes an answer differently once the conversation goes on (for example without its thoughts): in "
                "sequences of several answers the earlier ones are trained on, and held, as they never are when the "
                "model writes them. Use a training template that writes all alike, or a sequence for each answer",
            )
        if prefix == "bos+system" and self.folds_system():
            notes.append(
                "writes the system prompt into the user's turn: `gate.prefix: bos+system` keeps no more than `bos` does"
            )
        return ChatFormat(
            header=header,
            openings=tuple(ids for ids in openings if ids),
            leads=tuple(sorted(lead for lead in leads if lead)),
            ends=tuple(sorted({*ends, *tool_ends})),
            user=self.user_opening(start, boundary, closing, starter),
            bos=self.tokenizer.bos_token_id,
            prefix=prefix,
            notes=tuple(notes),
            history=history,
        )

    def text(self, messages: list[dict[str, Any]], **settings: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **settings))

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

    def headers_without_thoughts(self, closed: str) -> list[Ids]:
        """The header where thinking is switched off, for templates that know the usual name of the switch."""
        opened = self.text_if([_message("user", _USER)], add_generation_prompt=True, enable_thinking=False)
        found = self.ids(opened, len(closed), len(opened)) if opened.startswith(closed) else ()
        return [found] if found else []

    def thoughts(self) -> list[Ids]:
        """What stands between a user's message and the thoughts of an answer, if the template renders thoughts."""
        names = ("reasoning_content", "thinking", "reasoning")
        answer = {**_message("assistant", _ANSWER), **dict.fromkeys(names, _THOUGHT)}
        text = self.text_if([_message("user", _USER), answer])
        return [self.between(text, _USER, _THOUGHT)] if text.find(_USER) < text.find(_THOUGHT) else []

    def ends(self, tail: Ids, boundary: Ids, starter: int | None) -> Iterable[int]:
        """Ends of a turn, given what follows its text at the end of a conversation, and before the next turn."""
        if shared := [i for i in _until(_common(tail, boundary), starter) if i in self.special]:
            return shared[-1:]
        firsts = ([i for i in ids if i in self.special][:1] for ids in (tail, boundary))
        return [i for first in firsts for i in first]

    def tool_turns(self, starter: int | None) -> tuple[Ids, Ids, Iterable[int]]:
        """What stands before a tool's call, what between its result and the answer, and what ends the call's turn."""
        function = {"name": "pact", "arguments": {"text": _CALL}}
        calls = [{"type": "function", "id": "pact00000", "function": function}]
        asked = [_message("user", _USER), {**_message("assistant", ""), "tool_calls": calls}]
        result = {**_message("tool", _RESULT), "name": "pact", "tool_call_id": "pact00000"}
        last, whole = self.text_if(asked), self.text_if([*asked, result, _message("assistant", _ANSWER)])
        if not -1 < whole.find(_USER) < whole.find(_CALL) < whole.find(_RESULT) < whole.find(_ANSWER):
            return (), (), ()
        tail = self.between(last, _CALL) if _CALL in last else ()
        ends = self.ends(tail, self.between(whole, _CALL, _RESULT), starter)
        return self.between(whole, _USER, _CALL), self.between(whole, _RESULT, _ANSWER), ends

    def from_last_special(self, ids: Ids) -> Ids:
        """What precedes it after a tool's result may name the call."""
        return ids[max((place for place, i in enumerate(ids) if i in self.special), default=0) :]

    def user_opening(self, start: Ids, boundary: Ids, closing: Ids, starter: int | None) -> Ids:
        """What stands before a user's message, first or later, without the end of the turn before."""
        shared = _common(start[::-1], boundary[::-1])[::-1]
        rest = shared[len(closing) :]
        if closing and shared[: len(closing)] == closing and (rest[:1] or (None,))[0] in self.special:
            shared = rest
        return shared[len(shared) - 1 - shared[::-1].index(starter) :] if starter in shared else shared

    def folds_system(self) -> bool:
        text = self.text_if([_message("system", _SYSTEM), _message("user", _USER)])
        alone = self.text([_message("user", _USER)])
        return _SYSTEM in text and text.startswith(alone.partition(_USER)[0])


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _common(one: Ids, other: Ids) -> Ids:
    """What both begin with."""
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]


def _until(ids: Ids, token: int | None) -> Ids:
    return ids[: ids.index(token)] if token in ids else ids


def _longest(pattern: Ids, ids: Ids) -> int:
    """How much of the beginning of `pattern` can be found in `ids`."""
    return next(n for n in range(len(pattern), -1, -1) if n == 0 or find(ids, pattern[:n]))


def find(values: Ids | npt.NDArray[np.int64], pattern: Ids) -> list[int]:
    """Every offset at which `pattern` occurs in `values`; none for an empty pattern."""
    array = np.asarray(values)
    if not pattern or len(array) < len(pattern):
        return []
    starts = (array[: len(array) - len(pattern) + 1] == pattern[0]).nonzero()[0]
    return [int(i) for i in starts if tuple(array[i : i + len(pattern)].tolist()) == pattern]


def render(tokenizer: Any, messages: list[dict[str, str]], *, generation_prompt: bool) -> list[int]:
    """Token ids of a conversation under the tokenizer's chat template."""
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False
        )
    )
