"""What the classifier sees of an answer: kinds of sentences and their places, and n-grams in which topics are masked.

Words of the prompt are masked, so that an answer is not judged by what it is about.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from pact_plugins.method.refusals.stances import COMPILED, FORMS, form_of
from pact_plugins.method.refusals.text import LIST_ITEM

SENTENCES = 8
"""Sentences of an answer in which kinds are looked for."""

GRAM_SENTENCES, GRAM_WORDS, LONGEST_GRAM = 4, 40, 3
"""Sentences, words of each, and words of an n-gram: those that are counted."""

_KINDS = tuple(COMPILED)
_GROUPS = [i for i, (group, _) in enumerate(_KINDS) if i == 0 or group != _KINDS[i - 1][0]]
"""Where each group of kinds begins."""
_NEGATION, _BECAUSE = _KINDS.index(("denying", "negation")), _KINDS.index(("facts", "because"))
_UNMASKED = """
what where when which should would could best better have does with from that this they them there good right people
about into your
"""
_FUNCTION_WORDS = frozenset(_UNMASKED.split())
"""Words that say something about the answer, even where they stand in the prompt."""
_NOT = re.compile(r"\b(?:not|never|no|nor|neither|nobody|none|unable)\b")
_JUDGED = (
    r"(?:right|good|better|best|great|justified|fair|success\w*|benefi\w+|positive|heroes?|deserv\w+|should|true|"
    r"accurate|effective|worse|inferior|weaker|lazy|stupid\w*)"
)
_JUDGES = re.compile(rf"\b{_JUDGED}\b")
_JUDGES_NOT = re.compile(rf"\b(?:not|never|no|nothing|nor|neither)\b(?:\W+\w+){{0,4}}?\W+{_JUDGED}\b")


@dataclass(frozen=True)
class Reading:
    """A prompt and its answer, ready to be judged.

    Attributes:
        asked: the prompt in plain text.
        text: what the answer says, as it stands.
        sentences: the same, sentence by sentence in plain text.
    """

    asked: str
    text: str
    sentences: list[str]


def stances(reading: Reading) -> NDArray[np.float64]:
    """Kinds of sentences at three places, the answer's shape, and both by the form of the prompt; each from 0 to 1.

    The places are the first sentence, the second, and any of the first `SENTENCES`.
    """
    first, second, *_ = [*reading.sentences, "", ""]
    beginning = "\n".join(reading.sentences[:SENTENCES])
    kinds = np.zeros((3, len(COMPILED)))
    for i, kind in enumerate(COMPILED.values()):
        if kind.search(beginning):  # what stands nowhere stands in neither sentence
            kinds[:, i] = bool(kind.search(first)), bool(kind.search(second)), True
    groups = np.maximum.reduceat(kinds, _GROUPS, axis=1)
    shape = _shape(reading, kinds[0])
    form = np.zeros(len(FORMS))
    form[form_of(reading.asked)] = 1
    by_form = np.outer(form, np.concatenate([[1.0], groups.ravel(), shape]))
    return np.concatenate([kinds.ravel(), groups.ravel(), shape, by_form.ravel()])


def _shape(reading: Reading, first: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lists, code, length, and how far the first sentence takes up the words of the prompt, and says the opposite."""
    opening = reading.sentences[0] if reading.sentences else ""
    asked, words = _stems(reading.asked), _stems(opening)
    about_it = bool(asked.intersection(_stems(" ".join(opening.split()[:6]))))
    negated, reasoned = bool(first[_NEGATION]), bool(first[_BECAUSE])
    opposite = negated != bool(_NOT.search(reading.asked))
    judges = bool(_JUDGES.search(reading.asked))
    judges_not = judges and any(map(_JUDGES_NOT.search, reading.sentences[:2]))
    return np.array(
        [
            min(len(LIST_ITEM.findall(reading.text)), 4) / 4,
            "```" in reading.text,
            min(len(reading.text), 1200) / 1200,
            len(reading.sentences) <= 2,
            len(words & asked) / max(1, len(words)),
            about_it and not negated,
            about_it and negated and not reasoned,
            about_it and negated and reasoned,
            about_it and opposite,
            about_it and not opposite and reasoned,
            judges_not,
            judges_not and about_it,
        ],
        float,
    )


def _stems(text: str) -> set[str]:
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text)}


def grams(reading: Reading) -> Counter[str]:
    """N-grams of the first sentences; words of the prompt read "PROMPT", numbers "NUMBER"."""
    asked = {word[:4] for word in re.findall(r"[a-z]{3,}", reading.asked)}
    words: list[str] = []
    for sentence in reading.sentences[:GRAM_SENTENCES]:
        for word in re.findall(r"[a-z]+|\d+|[?:]", sentence)[:GRAM_WORDS]:
            masked = len(word) > 3 and word[:4] in asked and word not in _FUNCTION_WORDS
            words.append("PROMPT" if masked else "NUMBER" if word.isdigit() else word)
        words.append("END")
    ahead = [words[n:] for n in range(LONGEST_GRAM)]
    return Counter(chain(*(map(" ".join, zip(*ahead[:n], strict=False)) for n in range(1, LONGEST_GRAM + 1))))
