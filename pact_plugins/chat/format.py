"""What a chat template puts around an assistant turn, as token ids.

Words: the *header* is what the generation prompt adds: the tokens after which the model begins to write. The *opening*
is the part of it that stands before every assistant turn of a rendered conversation. Templates differ in what comes
between the opening and the turn's own words, its *lead*: nothing, the start of a thinking block, an empty one, the name
of a channel. An *end* is a token that closes an assistant turn.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pact_plugins.chat.fingerprints import digest
from pact_plugins.chat.template import (
    ANSWER,
    NEXT,
    SYSTEM,
    USER,
    Ids,
    TemplateProbe,
    common,
    find,
    in_parts,
    longest,
    message,
    spans,
    until,
    wants_parts,
)
from pact_plugins.config import Prefix
from pact_plugins.errors import PactError


def check_tokenizer(tokenizer: Any) -> None:
    """Refuses what is no tokenizer: nothing at all, or what prepares images alone.

    Raises:
        PactError: it cannot turn text into ids and back, or does not say which ids are special.
    """
    if tokenizer is None or not all(hasattr(tokenizer, name) for name in ("get_vocab", "decode", "all_special_ids")):
        raise PactError(
            expected="a trainer whose `processing_class` is the model's tokenizer, or has it",
            got=f"a {type(tokenizer).__name__}" if tokenizer is not None else "a trainer without one",
            consequence="PACT could not tell where answers begin, or which tokens to hold.",
            remedy="Make the trainer with `processing_class=tokenizer`.",
        )


@dataclass(frozen=True)
class ChatFormat:
    """The tokens that open and close an assistant turn, found by rendering conversations of made-up words.

    Attributes:
        header: ids that the template adds before an answer: the difference between rendering a conversation with and
            without the generation prompt. Where there is no such difference, what the template writes between a user's
            message and the answer, without what closes the user's turn, and as far as it writes it before there is an
            answer (noted). Empty without a template.
        openings: ids of which one stands before every assistant turn: the beginning of the header, another one if turns
            go on differently after a tool's result, and other ways to split them into tokens before blanks. Empty for
            the header itself.
        leads: ids that the template may put between an opening and the turn's own words.
        joined: pairs of ids: a token that joins the last one of an opening or a lead with blanks behind it, and that
            last one. In `openings`, `leads` and `user` it stands for both, and in what `unjoined` gives.
        ends: ids that close a turn: after a last answer, before a user's turn, after a tool call. Of several special
            tokens the last that is no part of the next turn. Empty if the template adds no special token.
        results: ids of which each opens a tool's result, where an opening stands between two of them.
        users: ids of which one opens a user's turn.
        trailer: ids that the template writes behind the end of a last answer, and the first of them behind others.
        unopened: whether the second of two answers in a row has no opening of its own.
        markers: ids of the tokens that are always split off as they are.
        exact: whether each opening, the user's too, holds a special token. Others may be split into tokens otherwise
            beside other words, and are not always found.
        starts: ids of which one begins a rendered conversation, with a system prompt or without.
        bos: id of the tokenizer's first token of a sequence.
        prefix: what stands before an answer whose prompt is removed (`before`).
        answers_only: whether the labels of the data mask all but answers. Then what is supervised at the beginning of a
            sequence, before any opening, goes on with an answer that packing or truncation has cut.
        notes: what the user should know of the template.
        history: what the user should know of it if a sequence holds several answers.
    """

    header: Ids = ()
    openings: tuple[Ids, ...] = ()
    leads: tuple[Ids, ...] = ()
    joined: tuple[tuple[int, int], ...] = ()
    ends: Ids = ()
    results: Ids = ()
    users: tuple[Ids, ...] = ()
    trailer: Ids = ()
    unopened: bool = False
    markers: frozenset[int] = field(default=frozenset(), repr=False)
    exact: bool = False
    starts: Ids = ()
    bos: int | None = None
    prefix: Prefix = "header"
    answers_only: bool = False
    notes: tuple[str, ...] = field(default=(), compare=False)
    history: tuple[str, ...] = field(default=(), compare=False)

    def fingerprint(self) -> str:
        """Identity of what is found where, and of what stands before an answer whose prompt is removed."""
        told = {name: value for name, value in asdict(self).items() if name not in ("notes", "history")}
        return digest([*{**told, "markers": sorted(self.markers)}.values()])

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

    def unjoined(self, input_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """[L] ids in which openings and leads are found whatever blanks the words behind them begin with (`joined`)."""
        if not self.joined:
            return input_ids
        tokens, last = self._joined
        places = np.searchsorted(tokens, input_ids).clip(max=len(tokens) - 1)
        return np.where(tokens[places] == input_ids, last[places], input_ids)

    @cached_property
    def _joined(self) -> npt.NDArray[np.int64]:
        """[2, n] `joined`, which is asked for every sequence of each batch."""
        return np.asarray(self.joined, np.int64).T

    def before(self, input_ids: npt.NDArray[np.int64]) -> Ids:
        """What the view without the prompt keeps of a sequence before the header of each answer (`gate.prefix`).

        `header`: nothing. `bos`: the sequence's first token, if it is the tokenizer's. `bos+system`: everything before
        the first user's turn, which is the system prompt and what a template puts before conversations.
        """
        if self.prefix == "header":
            return ()
        start = 1 if len(input_ids) and input_ids[0] == self.bos else 0
        if self.prefix == "bos+system":
            start = min((place for place, _ in spans(self.unjoined(input_ids), self.users)), default=start)
        return tuple(input_ids[:start].tolist())

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, prefix: Prefix = "header", template: str | None = None) -> ChatFormat:
        """Reads everything off the chat template: the tokenizer's, or `template` where rows are rendered with another.

        Raises:
            PactError: the template refuses a plain conversation of one user turn and one assistant turn, or leaves
                the text of a message out.
        """
        if template is None and getattr(tokenizer, "chat_template", None) is None:
            return cls(prefix=prefix)
        return _found(TemplateProbe(tokenizer, template), prefix)


def _found(probe: TemplateProbe, prefix: Prefix) -> ChatFormat:
    """What the template puts around turns, put together from what was rendered."""
    user, answer, following = message("user", USER), message("assistant", ANSWER), message("user", NEXT)
    try:
        closed, opened = (probe.text([user], add_generation_prompt=added) for added in (False, True))
        last, longer = probe.text([user, answer]), probe.text([user, answer, following])
    except Exception as error:  # a template may raise anything: it is the model author's program
        raise PactError(
            expected="a chat template that renders user turns and assistant turns in alternation",
            got=f"{type(error).__name__}: {error}",
            consequence="PACT could not tell where answers begin.",
            remedy="Check the tokenizer's `chat_template` with `tokenizer.apply_chat_template`.",
        ) from error
    if missing := [text for text in (USER, ANSWER, NEXT) if text not in longer]:
        raise PactError(
            expected="a chat template that renders the text of each message",
            got=f"one that leaves out {', '.join(missing)} of the roles user, assistant, user",
            consequence="PACT could not tell where answers begin, and would ask the model without the request.",
            remedy="Set a `chat_template` that does, for messages whose `content` is a text or a list of parts.",
        )
    notes: list[str] = []
    gaps = [probe.between(text, USER, ANSWER) for text in (last, longer)]
    tail, boundary = probe.between(last, ANSWER), probe.between(longer, ANSWER, NEXT)
    start = probe.between(closed, None, USER)
    # What begins a sequence begins no turn, unless it stands before a later one too.
    begins = {probe.tokenizer.bos_token_id} - set(boundary)
    starter = next((i for i in start if i in probe.special and i not in begins), None)
    closing = until(common(tail, boundary), starter)
    header = probe.ids(opened, len(closed), len(opened)) if opened.startswith(closed) else ()
    if not header:
        header = gaps[0][len(common(gaps[0], closing)) :]
        # Not more of it than the model is given: the rest (a space) it may write itself, or not.
        header = common(header, probe.between(closed, USER)[len(common(gaps[0], closing)) :]) or header
        if header:
            notes.append(
                "adds no generation prompt after a user's turn: taken for an answer's header is "
                f"{probe.tokenizer.decode(list(header))!r}, what it writes between a user's message and an answer"
            )
    headers = [header, *probe.headers_without_thoughts(closed)]
    thoughts = probe.thoughts()
    opening = header[: min(longest(header, gap) for gap in (*gaps, *headers, *thoughts))]
    # A beginning in plain text may occur anywhere.
    if header and opening != header and not probe.special.intersection(opening):
        notes.append(
            f"opens rendered answers otherwise than its generation prompt, {probe.tokenizer.decode(list(header))!r}"
        )
        opening = gaps[0][len(common(gaps[0], closing)) :]
    # Turns that call a tool may go on otherwise from an earlier token.
    tools = probe.tool_turns(starter)
    shorter = common(gaps[0], tools.calling)
    if tools.calling and not find(tools.calling, opening) and shorter and not find(boundary, shorter):
        opening = shorter
    openings = [opening, *([] if find(tools.after, opening) else [probe.from_last_special(tools.after)])]
    if tools.again and not any(find(tools.again, ids) for ids in openings):
        openings.append(tools.again[: 1 + max(len(common(tools.again, gap)) for gap in (tools.after, tools.gap))])
    # Where an opening stands between two results too, what follows it there opens the turn of a tool.
    behind = [tools.gap[place + len(ids) :] for ids in openings for place in find(tools.gap, ids)]
    results = {i for rest in behind for i in [i for i in rest if i in probe.special][:1]}
    ends = {*probe.ends(tail, boundary, starter), *tools.ends}
    told = probe.text_if([user, answer, message("system", SYSTEM), following])
    if -1 < told.find(ANSWER) < told.find(SYSTEM):
        ends.update(probe.ends(tail, probe.between(told, ANSWER, SYSTEM), starter))
    row = probe.text_if([user, answer, message("assistant", NEXT)])
    in_a_row = probe.between(row, ANSWER, NEXT) if -1 < row.find(ANSWER) < row.find(NEXT) else ()
    unopened = not ends.isdisjoint(in_a_row) and not any(find(in_a_row, ids) for ids in openings)
    leads = {gap[place + len(opening) :] for gap in (*gaps, *headers, *thoughts) for place in find(gap, opening)}
    history = ()
    if not longer.startswith(last.partition(ANSWER)[0]):
        history = (
            "writes an answer differently once the conversation goes on (for example without its thoughts): in "
            "sequences of several answers the earlier ones are trained on, and held, as they never are when the "
            "model writes them. Use a training template that writes all alike, or a sequence for each answer",
        )
    if prefix == "bos+system" and probe.folds_system():
        notes.append(
            "writes the system prompt into the user's turn: `gate.prefix: bos+system` keeps no more than `bos` does"
        )
    opens_user = probe.user_opening(start, boundary, closing, starter)
    spelling = probe.spelling({*openings, *leads, opens_user})
    with_system = probe.text_if([message("system", SYSTEM), user])
    return ChatFormat(
        header=header,
        openings=spelling.every(openings),
        leads=spelling.every(sorted(leads)),
        joined=tuple(sorted(spelling.joined.items())),
        ends=tuple(sorted(ends)),
        results=tuple(sorted(results)),
        users=spelling.every([opens_user]),
        trailer=tail[next((place + 1 for place, i in enumerate(tail) if i in ends), len(tail)) :],
        exact=all(probe.special.intersection(ids) for ids in (*filter(None, openings), opens_user)),
        # Behind an end, a user's turn must be known by a marker to tell it from an answer that goes on.
        unopened=unopened and not probe.special.isdisjoint(opens_user),
        markers=frozenset(probe.special),
        starts=tuple(sorted({i for text in (closed, with_system) for i in probe.ids(text, 0, len(text))[:1]})),
        bos=probe.tokenizer.bos_token_id,
        prefix=prefix,
        notes=tuple(notes),
        history=history,
    )


def render(tokenizer: Any, messages: list[dict[str, Any]], *, generation_prompt: bool, **settings: Any) -> list[int]:
    """Token ids of a conversation under the tokenizer's chat template; `settings` of `apply_chat_template` besides."""
    turns = in_parts(messages) if wants_parts(tokenizer, **settings) else messages
    return list(
        tokenizer.apply_chat_template(
            turns, add_generation_prompt=generation_prompt, tokenize=True, return_dict=False, **settings
        )
    )
