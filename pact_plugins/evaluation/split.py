"""A run's own eval split as a task: each row is asked as token ids up to its last answer, which is the expected one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pact_plugins.chat.answers import Document
from pact_plugins.chat.format import ChatFormat
from pact_plugins.chat.template import spans
from pact_plugins.errors import PactError
from pact_plugins.evaluation.prompts import Prompt, PromptSet
from pact_plugins.method.refusals.text import said

MOST = 256
"""Rows that are asked where `pact.eval.limit` says nothing: eval splits may hold thousands."""


def prompts_of(
    documents: Sequence[Document], chat: ChatFormat, tokenizer: Any, name: str, limit: int | None = None
) -> tuple[PromptSet, Counter[str]]:
    """A task of these rows, and why others were left out, with how many they were.

    Which rows are taken hangs on what they hold alone, not on their order; of equal ones it is one.

    Args:
        documents: of the split, as the host holds them.
        chat: what the chat template that rendered them puts around turns.
        limit: rows that are asked, at most; `MOST` for None.

    Raises:
        PactError: none of them can be asked.
    """
    found: dict[tuple[int, int], Prompt] = {}
    left_out: Counter[str] = Counter()
    for document in sorted({d.key: d for d in documents}.values(), key=lambda d: d.key):
        if len(found) == (limit or MOST):
            break
        prompt = _prompt(document, chat, tokenizer)
        if isinstance(prompt, str):
            left_out[prompt] += 1
        else:
            found[document.row, document.start] = prompt
    if not found:
        raise PactError(
            expected=f"in the {name} rows that end with an answer, for `pact.eval.task: split`",
            got=", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "no row that is supervised",
            consequence="The report could not say whether the task was learned.",
            remedy="Give conversations or prompts with their completions, short enough for `max_length` "
            "(`sequence_len`), or a file: `pact.eval.task: FILE`.",
        )
    return PromptSet(name, "task", tuple(found[place] for place in sorted(found))), left_out


def no_split(got: str) -> PactError:
    """A run whose eval split is to be asked, and that has none."""
    return PactError(
        expected="an eval split, for `pact.eval.task: split`",
        got=got,
        consequence="The report could not say whether the task was learned.",
        remedy="Give the trainer an `eval_dataset`, held whole; in a file for TRL set `eval_strategy` and "
        "`dataset_test_split` or `test_split_size`, in one for Axolotl `test_datasets` or `val_set_size`; or name a "
        "file: `pact.eval.task: FILE`.",
    )


def _prompt(document: Document, chat: ChatFormat, tokenizer: Any) -> Prompt | str:
    """The prompt of a row, or why there is none."""
    ids = document.input_ids
    answers = document.answers(chat)
    if not answers or answers[-1].start < 2:
        return "without an answer to a prompt"
    answer = answers[-1]
    asked = spans(chat.unjoined(ids), chat.users)
    if asked and document.begins_inside(chat):
        return "cut off at their beginning"
    ends = [*chat.ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    # The end itself need not be supervised.
    if chat.ends and not np.isin(ids[max(answer.start, answer.stop - 1 - len(chat.trailer)) :], ends).any():
        return "cut off at their end"

    def text(start: int, stop: int) -> str:
        return tokenizer.decode(ids[start:stop].tolist(), skip_special_tokens=True).strip()

    expected = said(text(answer.start, answer.stop))
    if not expected:
        return "whose answer holds no words"
    begun = max((end for _, end in asked if end < answer.start), default=0)
    ended = np.flatnonzero(np.isin(ids[begun : answer.start], ends))
    shown = text(begun, begun + int(ended[0]) if begun and len(ended) else answer.start)
    identity = f"{document.row + 1}.{document.start}.{document.key.hex()[:8]}"
    return Prompt(identity, shown, expected, ids=tuple(ids[: answer.start].tolist()))
