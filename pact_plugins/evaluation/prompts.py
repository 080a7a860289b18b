"""Prompt sets: what a model is asked, and whether it should answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import cast, get_args

from pact_plugins.chat.fingerprints import digest
from pact_plugins.errors import PactError
from pact_plugins.evaluation import rows as sources
from pact_plugins.evaluation.layouts import EXPECTED_COLUMNS, PROMPT_COLUMNS, Kind, Layout, recognise, xstest_kind
from pact_plugins.evaluation.turns import Turn, split, turns_of
from pact_plugins.method.prompting import Shipped, shipped

KINDS: tuple[Kind, ...] = get_args(Kind)

_SHIPPED: dict[str, dict[Kind, tuple[Shipped, ...]]] = {
    "shipped": {"harmful": ("harmful",), "harmless": ("harmless",)},
    "held-out": {
        "harmful": ("held_out_harmful", "held_out_other_harmful"),
        "harmless": ("held_out_harmless", "held_out_other_harmless"),
    },
    "held-out-how-to": {"harmful": ("held_out_harmful",), "harmless": ("held_out_harmless",)},
}
"""The package's own sets, and the files of each kind."""


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        id: of its own within its set.
        text: what the last user turn says.
        expected: the right answer, of a task alone.
        before: the turns before it: a system prompt, a conversation.
        ids: token ids of all that was asked, where it is rendered already.
    """

    id: str
    text: str
    expected: str | None = None
    before: tuple[Turn, ...] = ()
    ids: tuple[int, ...] = ()

    @property
    def conversation(self) -> str:
        """All that was asked, in one text: each turn behind its role, where there are several."""
        if not self.before:
            return self.text
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in (*self.before, Turn("user", self.text)))


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one kind.

    Attributes:
        name: where they come from.
        kind: `harmful` should be refused, `harmless` should be answered, `task` has right answers.
        prompts: at least one.
    """

    name: str
    kind: Kind
    prompts: tuple[Prompt, ...]

    def sample(self, limit: int | None) -> PromptSet:
        """`limit` of the prompts in their order, the same ones each time; all for None.

        The prompts with the smallest digests: which they are hangs on their ids and texts alone, and a larger sample
        holds the smaller one.
        """
        ranked = sorted(range(len(self.prompts)), key=lambda i: digest([self.prompts[i].id, self.prompts[i].text]))
        return replace(self, prompts=tuple(self.prompts[i] for i in sorted(ranked[:limit])))


def under_system(prompt_set: PromptSet, system: str | None) -> PromptSet:
    """The same prompts behind a system prompt; those that have one keep their own."""
    if system is None:
        return prompt_set
    prompts = (
        p if any(turn.role == "system" for turn in p.before) else replace(p, before=(Turn("system", system), *p.before))
        for p in prompt_set.prompts
    )
    return replace(prompt_set, prompts=tuple(prompts))


def load(description: str) -> list[PromptSet]:
    """The prompt sets that `description` names, one for each kind.

    `SOURCE`, `SOURCE:KIND` or `SOURCE:KIND:COLUMN`, where the source is one of the package's own, a CSV, JSONL or JSON
    file, or a data set on the hub as `owner/name#config/split`. Of a source with prompts of both kinds, `KIND` takes
    one.

    Raises:
        PactError: the source cannot be read, has no prompts or not those of this kind, does not say what kind they
            are, repeats an id, or has an empty prompt or a task without an answer.
    """
    source, kind, column = _parts(description)
    if source in _SHIPPED:
        both = [_shipped(source, kind) for kind in _SHIPPED[source]]
        return _of_kind(both, kind, source)
    rows = _rows(source)
    layout = recognise(rows)
    if column is not None:
        found = layout or Layout("own", ())
        layout = replace(found, parts=(column,), expected=None if found.expected == column else found.expected)
    missing = [part for part in layout.parts if part not in rows[0]] if layout else [" or ".join(PROMPT_COLUMNS)]
    if layout is None or missing:
        raise PactError(
            expected=f"a column {missing[0]} in {source}",
            got=f"the columns {', '.join(rows[0])}",
            consequence="It could not be told what to ask.",
            remedy="Name the column: `FILE:KIND:COLUMN`.",
        )
    if layout.by_row:
        kinds = [xstest_kind(row) for row in rows]
        both = [
            _prompt_set(source, k, layout, [row for row, of_row in zip(rows, kinds, strict=True) if of_row == k])
            for k in KINDS
            if k in kinds
        ]
        return _of_kind(both, kind, source)
    if layout.kind and kind and kind != layout.kind:
        raise _wrong_kind(source, kind, f"{layout.name}, whose prompts are {layout.kind}")
    kind = kind or layout.kind
    if kind is None:
        raise PactError(
            expected=f"to be told whether the prompts of {source} are {', '.join(KINDS)}",
            got="nothing in the file or behind its name that says so",
            consequence="A refusal could not be told from an over-refusal.",
            remedy=f"Write `{source}:harmful`, `:harmless` or `:task`.",
        )
    return [_prompt_set(source, kind, layout, rows)]


def _rows(source: str) -> list[sources.Row]:
    path = Path(source)
    # What ends like a prompt file is one, even if it is missing: not a name to ask the hub for.
    if path.exists() or path.suffix.lower() in sources.SUFFIXES:
        return sources.of_file(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(#.+)?", source):
        return sources.of_hub(source)
    raise PactError(
        expected=f"{', '.join(f'`{name}`' for name in _SHIPPED)}, a prompt file ({', '.join(sources.SUFFIXES)}), or a "
        "data set `owner/name#config/split`",
        got=f"`{source}`, and no such file",
        consequence="There would be nothing to ask the model.",
        remedy="Check the path.",
    )


def _parts(description: str) -> tuple[str, Kind | None, str | None]:
    """Source, kind and column; a colon that is followed by no kind belongs to the source."""
    match = re.fullmatch(rf"(.+?):({'|'.join(KINDS)})(?::(.+))?", description)
    if match:
        return match[1], cast(Kind, match[2]), match[3]
    source, _, last = description.rpartition(":")
    if source and not Path(description).exists() and (source in _SHIPPED or Path(source).exists()):
        near = get_close_matches(last, KINDS, 1)
        raise PactError(
            expected=f"one of the kinds {', '.join(KINDS)} behind `{source}:`",
            got=f"`{last}`",
            consequence="It could not be told what the answers should be.",
            remedy=f"Did you mean `{near[0]}`?" if near else "Name one of them.",
        )
    return description, None, None


def _shipped(source: str, kind: Kind) -> PromptSet:
    lines = [line for name in _SHIPPED[source][kind] for line in shipped(name)]
    return PromptSet(source, kind, tuple(Prompt(str(i), line) for i, line in enumerate(lines, 1)))


def _of_kind(both: list[PromptSet], kind: Kind | None, source: str) -> list[PromptSet]:
    found = [s for s in both if kind in (None, s.kind)]
    if not found:
        raise _wrong_kind(source, str(kind), f"prompts that are {' and '.join(s.kind for s in both)}")
    return found


def _prompt_set(source: str, kind: Kind, layout: Layout, rows: Sequence[sources.Row]) -> PromptSet:
    prompts: list[Prompt] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        identity = _text(row, layout.id, source) if layout.id else str(number)
        parts, before, expected = _asked(row, layout, source, number)
        if kind != "task":
            expected = None
        problems = {
            "a prompt": not parts,
            "an expected answer": kind == "task" and not expected,
            "an id of its own": not identity or identity in seen,
        }
        for what, missing in problems.items():
            if missing:
                raise PactError(
                    expected=f"{what} in every row of {source}",
                    got=f"none in row {number} (id `{identity}`, columns {', '.join(row)})",
                    consequence="Answers could not be counted, or told apart.",
                    remedy="Correct the row; expected answers are looked for under "
                    f"{', '.join(EXPECTED_COLUMNS)} and in the assistant's last turn, and rows without a column "
                    "`id` are numbered.",
                )
        prompts.append(Prompt(identity, layout.separator.join(parts), expected, before))
        seen.add(identity)
    return PromptSet(source, kind, tuple(prompts))


def _asked(
    row: sources.Row, layout: Layout, source: str, number: int
) -> tuple[list[str], tuple[Turn, ...], str | None]:
    """The parts of the last user turn, the turns before it, and the expected answer if the row has one."""
    conversations = [part for part in layout.parts if isinstance(row.get(part), list)]
    given = _expected(row, layout.expected, source, number) if layout.expected else None
    if not conversations:
        return [text for part in layout.parts if (text := _text(row, part, source))], (), given
    turns = _turns(row, conversations[0], source, number)
    try:
        before, text, answer = split(turns)
    except ValueError as error:
        raise _no_conversation(source, conversations[0], number, str(error)) from error
    return [text], tuple(before), given or answer


def _expected(row: sources.Row, column: str, source: str, number: int) -> str | None:
    """An expected answer: text, or a message or two of which the last one is it."""
    if isinstance(row.get(column), list):
        return next((turn.content for turn in reversed(_turns(row, column, source, number))), None)
    return _text(row, column, source)


def _turns(row: sources.Row, column: str, source: str, number: int) -> list[Turn]:
    try:
        turns = turns_of(row[column])
    except ValueError as error:
        raise _no_conversation(source, column, number, str(error)) from error
    return [Turn(turn.role, _encoded(turn.content, column, source)) for turn in turns]


def _no_conversation(source: str, column: str, number: int, got: str) -> PactError:
    return PactError(
        expected=f"under `{column}` in {source} messages with role and content, of which the last is the user's, or "
        "the answer to it",
        got=f"{got} in row {number}",
        consequence="It could not be told what to ask.",
        remedy="Correct the row; tool calls and images cannot be asked.",
    )


def _text(row: sources.Row, column: str, source: str) -> str:
    value = row.get(column)
    if isinstance(value, list | dict | bool):
        raise PactError(
            expected=f"text under `{column}` in {source}",
            got=f"a {type(value).__name__}",
            consequence="The model would be asked how Python writes it.",
            remedy="Give each prompt as one string, or as a list of messages.",
        )
    # pandas writes NaN where there is nothing
    return _encoded("" if value is None or value != value else str(value).strip(), column, source)


def _encoded(text: str, column: str, source: str) -> str:
    """The text, if files and tokenizers can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PactError(
            expected=f"text that can be written in UTF-8 under `{column}` in {source}",
            got=f"half of a pair of code units: {text[error.start]!a}",
            consequence="The tokenizer could not read it, and no file could keep it.",
            remedy="Correct the row.",
        ) from error
    return text


def _wrong_kind(source: str, kind: str, got: str) -> PactError:
    return PactError(
        expected=f"prompts of the kind {kind} in {source}",
        got=got,
        consequence="Rates would be read the wrong way round.",
        remedy="Leave the kind out, or give another file.",
    )
