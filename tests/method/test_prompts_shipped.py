"""The shipped prompts in other languages, line for line translations of some of the English pairs."""

from __future__ import annotations

import unicodedata
from importlib import resources

import pytest

LINES = [
    *(1, 6, 11, 16, 17, 22, 27, 32, 33, 38, 41, 43, 48, 49, 52, 54),
    *(64, 65, 70, 80, 81, 86, 89, 96, 97, 99, 107, 113, 116, 118, 126, 128),
]
"""The English lines, counted from one, that each language translates in this order."""

SCRIPTS = {
    **dict.fromkeys(("de", "fr", "es", "pt", "it"), ("LATIN",)),
    "ru": ("CYRILLIC",),
    "zh": ("CJK UNIFIED",),
    "ja": ("HIRAGANA", "KATAKANA", "CJK UNIFIED"),
    "hi": ("DEVANAGARI",),
    "ar": ("ARABIC",),
}
"""How the Unicode names of a language's letters begin; the first is in each of its lines."""

QUESTION_MARKS = ("?", "\N{FULLWIDTH QUESTION MARK}", "\N{ARABIC QUESTION MARK}")
KINDS = ("harmful", "harmless")

every_language = pytest.mark.parametrize("language", SCRIPTS)


def _text(name: str) -> str:
    return (resources.files("pact_plugins.method") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")


def _translations(language: str) -> list[str]:
    """The lines of both files."""
    return [line for kind in KINDS for line in _text(f"{language}/{kind}").splitlines()]


def _letters(line: str) -> list[str]:
    """The Unicode names of a line's letters."""
    return [unicodedata.name(character) for character in line if character.isalpha()]


def test_every_language_is_tested() -> None:
    """Prevents: a language shipped without the checks below."""
    folders = {path.name for path in (resources.files("pact_plugins.method") / "prompts").iterdir() if path.is_dir()}
    assert folders == set(SCRIPTS)


@every_language
@pytest.mark.parametrize("kind", KINDS)
def test_lines_follow_the_english_ones(language: str, kind: str) -> None:
    """Prevents: a lost or an added line, after which all prompts that follow have the wrong look-alikes.

    Two lines that are both questions, or both requests, may change places unseen.
    """
    english = _text(kind).splitlines()
    lines = _text(f"{language}/{kind}").splitlines()
    asks = [line.endswith(QUESTION_MARKS) for line in lines]
    assert asks == [english[number - 1].endswith("?") for number in LINES]


@every_language
def test_lines_are_clean(language: str) -> None:
    """Prevents: a prompt that a tokenizer reads otherwise than it looks, or an empty one."""
    for kind in KINDS:
        text = _text(f"{language}/{kind}")
        assert text == unicodedata.normalize("NFC", text)
        assert text.split("\n") == [*(line.strip() for line in text.splitlines() if line.strip()), ""]


@every_language
def test_lines_are_in_the_language_s_script(language: str) -> None:
    """Prevents: one language's lines in the file of another, as far as the script tells."""
    scripts = SCRIPTS[language]
    for line in _translations(language):
        letters = _letters(line)
        assert all(letter.startswith(scripts) for letter in letters), line
        assert any(letter.startswith(scripts[0]) for letter in letters), line


def test_translations_are_apart() -> None:
    """Prevents: a contrast of a prompt with itself, a line left in English, and one language's lines under another."""
    english = [line for name in (*KINDS, *(f"held_out_{kind}" for kind in KINDS)) for line in _text(name).splitlines()]
    translations = [line for language in SCRIPTS for line in _translations(language)]
    assert len(set(translations)) == len(translations) == len(SCRIPTS) * len(KINDS) * len(LINES)
    assert not set(translations) & set(english)
