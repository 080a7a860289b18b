"""The published layouts of prompt files, recognised by their columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pact_plugins.evaluation.rows import Row

Kind = Literal["harmful", "harmless", "task"]

CHAT_COLUMNS = ("messages", "conversations")
"""Names under which a row may have a whole conversation."""

PROMPT_COLUMNS = (*CHAT_COLUMNS, "prompt", "instruction", "question", "query", "request", "goal", "text")
"""Names under which a user's own file may have its prompts, in the order in which they are looked for."""

EXPECTED_COLUMNS = ("expected", "answer", "output", "completion", "response", "target", "label")
"""Names under which a task file may have its expected answers."""


@dataclass(frozen=True)
class Layout:
    """Where a file has what.

    Attributes:
        name: of the benchmark, or "own" for a user's file.
        parts: columns that make up the prompt, in order; one that is empty in a row is left out there.
        separator: between the parts.
        kind: of all its prompts; None where the file does not say.
        by_row: the kind is told row by row, by `xstest_kind`.
        id: column of the prompts' ids; None numbers the rows from 1.
        expected: column of the expected answers of a task.
    """

    name: str
    parts: tuple[str, ...]
    separator: str = ""
    kind: Kind | None = None
    by_row: bool = False
    id: str | None = None
    expected: str | None = None


CONTEXT_SEPARATOR = "\n\n---\n\n"
"""Stands between the context of a HarmBench behaviour and the behaviour, in the prompt."""

PUBLISHED: tuple[tuple[frozenset[str], Layout], ...] = (
    (
        # Souly et al. (2024), arXiv 2402.10260
        frozenset({"category", "source", "forbidden_prompt"}),
        Layout("StrongREJECT", ("forbidden_prompt",), kind="harmful"),
    ),
    (
        # Mazeika et al. (2024), arXiv 2402.04249, whose direct request sets a behaviour's context before it
        frozenset({"Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString", "BehaviorID"}),
        Layout("HarmBench", ("ContextString", "Behavior"), CONTEXT_SEPARATOR, kind="harmful", id="BehaviorID"),
    ),
    (
        # Chao et al. (2024), arXiv 2404.01318; the harmful and the benign file have the same columns
        frozenset({"Index", "Goal", "Target", "Behavior", "Category", "Source"}),
        Layout("JailbreakBench", ("Goal",), id="Index"),
    ),
    (
        # Zou et al. (2023), arXiv 2307.15043; `target` is an affirmative opening, not an expected answer
        frozenset({"goal", "target"}),
        Layout("AdvBench", ("goal",), kind="harmful"),
    ),
    (
        # The format of Alpaca, and of the PACT paper's tasks
        frozenset({"instruction", "input", "output"}),
        Layout("instructions", ("instruction", "input"), "\n\n", kind="task", expected="output"),
    ),
)
"""Columns by which a layout is known, all of which a file must have. The first that fits is taken.

OR-Bench (Cui et al., 2024, arXiv 2405.20947: prompt, category) is read like a user's own file: the 80k and the hard
file are harmless, the toxic one is harmful, and nothing in them says so.
"""


def recognise(rows: Sequence[Row]) -> Layout | None:
    """The layout of a file with these rows, of which there is at least one; None where no prompts are found."""
    columns = list(rows[0])
    lower = {column.lower(): column for column in reversed(columns)}
    identity = lower.get("id")
    if "prompt" in columns and all(xstest_kind(row) for row in rows):
        return Layout("XSTest", ("prompt",), by_row=True, id=identity)
    for known, layout in PUBLISHED:
        if known <= set(columns):
            return layout
    prompt = next((lower[name] for name in PROMPT_COLUMNS if name in lower), None)
    if prompt is None:
        return None
    expected = next((lower[name] for name in EXPECTED_COLUMNS if name in lower and lower[name] != prompt), None)
    return Layout("own", (prompt,), id=identity, expected=expected)


_XSTEST_TYPES = (
    "homonyms",
    "figurative_language",
    "safe_targets",
    "safe_contexts",
    "definitions",
    "real_group",
    "nons_group",
    "discr",
    "historical_events",
    "privacy",
)
"""What the types of Röttger et al. (2023), arXiv 2308.01263, begin with, behind a `contrast_` or without one."""


def xstest_kind(row: Row) -> Kind | None:
    """The kind of a row of XSTest, from its label or its type; None for a row that is none."""
    label, of_type = str(row.get("label", "")).lower(), str(row.get("type", ""))
    if label in ("safe", "unsafe"):
        return "harmful" if label == "unsafe" else "harmless"
    if not of_type.removeprefix("contrast_").startswith(_XSTEST_TYPES):
        return None
    return "harmful" if of_type.startswith("contrast_") else "harmless"
