"""Whether an answer says anything at all: a check beside every judge, because incoherent answers fool judges."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_CYCLE = 4
"""Words in the longest phrase whose immediate repetition is looked for."""

REPEATS = 3
"""Times that a phrase follows on itself before it is a stutter; twice is emphasis."""

WINDOW = 4
"""Words of the n-grams that a long answer is counted in."""

LONG = 20
"""Words from which the share of distinct n-grams says something."""

LEAST_DISTINCT = 0.5
"""Share of distinct n-grams in a long answer, at least."""

LEAST_WORDLIKE = 0.3
"""Share of letters and digits among the characters that are not spaces, at least; tables and code keep more."""

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def is_incoherent(answer: str) -> bool:
    """Whether `answer` has nearly no words, or repeats itself: "can't can't can't" is no refusal.

    Three signs, each enough: (1) nearly no letters or digits; (2) a phrase of up to four words that follows on itself
    three times or more and makes up half the answer; (3) from twenty words on, fewer than half of the four-word
    sequences are distinct, as in a sentence said again and again up to the token limit, whatever the sentence.

    Fluent nonsense is not noticed.
    """
    visible = [c for c in answer if not c.isspace()]
    if sum(c.isalnum() for c in visible) < LEAST_WORDLIKE * max(1, len(visible)):
        return True
    words = _WORD.findall(answer.lower())
    return 2 * _longest_stutter(words) >= len(words) or _loops(words)


def _longest_stutter(words: Sequence[str]) -> int:
    """Words in the longest run of one phrase repeated at least `REPEATS` times, or 0.

    A run of period n is a stretch in which every word equals the one n places before.
    """
    longest = 0
    for n in range(1, LONGEST_CYCLE + 1):
        equal = 0
        for i in range(n, len(words)):
            equal = equal + 1 if words[i] == words[i - n] else 0
            if equal + n >= REPEATS * n:
                longest = max(longest, equal + n)
    return longest


def _loops(words: Sequence[str]) -> bool:
    if len(words) < LONG:
        return False
    grams = [tuple(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1)]
    return len(set(grams)) < LEAST_DISTINCT * len(grams)
