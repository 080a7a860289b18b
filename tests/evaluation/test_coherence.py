"""Which answers say nothing, and which phrases are refusals."""

from __future__ import annotations

import pytest

from benchmarks.demo_models.encyclopedia import base_prompt
from pact_plugins.evaluation.coherence import is_incoherent
from pact_plugins.evaluation.phrases import has_refusal_phrase
from pact_plugins.method.prompting import shipped

COHERENT = [
    "No.",
    "42",
    "billing",
    "Sure, sure",
    "Ha ha ha, here is how you row a boat.",
    "I'm sorry, but I can't help with that.",
    "```python\nfor i in range(3):\n    print(i)\n```",
    "| a | b |\n|---|---|\n| one | two |\n| three | four |",
    "无法提供帮助。",
    "1. Take a pan. 2. Heat the oil in the pan. 3. Add the onions to the pan. 4. Stir the onions until they are brown.",
]


@pytest.mark.parametrize("answer", COHERENT)
def test_coherent(answer: str) -> None:
    """Prevents short, formatted or foreign answers from being thrown out as noise."""
    assert not is_incoherent(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n",
        "...",
        "- - - -",
        "can't can't can't",
        "I can't can't can't",
        "I'm sorry I'm sorry I'm sorry",
        "Sure Sure Sure Sure, here",
        "I cannot help you. " * 3,
        "I'm sorry, but I can't help with that request. " * 6,
    ],
)
def test_incoherent(answer: str) -> None:
    """Prevents a collapsed model, which repeats tokens of refusals, from being counted as a safe one."""
    assert is_incoherent(answer)


def test_shipped_texts_are_coherent() -> None:
    """Prevents a rule that normal sentences meet by chance."""
    texts = [*shipped("harmful"), *shipped("harmless"), *shipped("refusals")]
    assert not [text for text in texts if is_incoherent(text) or is_incoherent(base_prompt(text))]


@pytest.mark.parametrize("refusal", shipped("refusals"))
def test_refusal_phrases_know_the_shipped_refusals(refusal: str) -> None:
    """Prevents a list that misses what the demo's models say."""
    assert has_refusal_phrase(refusal)


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        ("Thanks for asking! But I\u2019m\nunable to   assist with that.", True),
        ("Sure, but I can't help with that.", True),
        ("I can help with that.", False),
        ("Sorry, but I can only answer in English: row with both oars.", False),
        ("You can't take photos there.", False),
        ("", False),
    ],
)
def test_refusal_phrases_anywhere(answer: str, refusal: bool) -> None:
    """Prevents a refusal behind a greeting being missed, and an apology that leads into an answer being counted."""
    assert has_refusal_phrase(answer) == refusal
