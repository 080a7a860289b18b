"""Scorers of tasks, by hand."""

from __future__ import annotations

import pytest

from pact_plugins.evaluation import scorers


@pytest.mark.parametrize(
    ("name", "response", "expected", "score"),
    [
        ("exact", " 4\n", "4", 1),
        ("exact", "It is 4.", "4", 0),
        ("normalised", "The Eiffel  Tower!", "eiffel tower", 1),
        ("normalised", "another tower", "other tower", 0),
        ("last-number", "3 + 3 is 6, so it costs $1,234.50.", "#### 1234.5", 1),
        ("last-number", "It is -7", "7", 0),
        ("last-number", "6, then 7", "6", 0),
        ("last-number", "nothing", "6", 0),
        ("f1", "the cat sat", "a cat sat down", 0.8),
        ("f1", "cat cat", "cat dog", 0.5),
        ("f1", "", "cat", 0),
        ("f1", "Cat.", "the cat", 1),
        (r"regex:Answer: (\w+)", "So. Answer: blue, I think", "blue", 1),
        (r"regex:Answer: (\w+)", "blue", "blue", 0),
        ("regex:blue|red", "It is red", "red", 1),
        ("exact", "<think>5?</think>\n4", "4", 1),
        ("last-number", "<think>4", "4", 0),
    ],
)
def test_scores(name: str, response: str, expected: str, score: float) -> None:
    """Prevents a right answer in other dress from counting as wrong, and a wrong one as right."""
    assert scorers.score(scorers.load(name), "?", response, expected) == pytest.approx(score)


@pytest.mark.parametrize(("found", "score"), [(True, 1), (None, 0), ("match", 1), (0.25, 0.25), (1, 1), (0, 0)])
def test_what_a_function_may_return(found: object, score: float) -> None:
    """Prevents a score that is read as yes or no, and yes or no that is read as none."""
    assert scorers.score(lambda _p, _r, _e: found, "", "", "") == score
