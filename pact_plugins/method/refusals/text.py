"""What of an answer is judged: what it says to the user, in plain sentences, if it says so in English."""

from __future__ import annotations

import re

LONGEST = 8000
"""Characters of an answer that are read. Regular expressions then take milliseconds, however long an answer is."""

LONGEST_SENTENCE = 400
"""Characters of a sentence that are read."""

LIST_ITEM = re.compile(r"(?m)^\s*(?:\d{1,2}[.)]|[-*\u2022])\s+\S")
"""How a line of a list begins, in Markdown."""

_TAGS = "think|thinking|thought|reasoning"
_THINKS = re.compile(rf"\s*(?:<(?:{_TAGS})>|\[THINK\]|\u25c1think\u25b7|analysis(?=[A-Z]))")
_THOUGHT_ENDS = re.compile(rf"</(?:{_TAGS})>|\[/THINK\]|\u25c1/think\u25b7|assistantfinal")

_TAG = re.compile(r"<[/|]?[A-Za-z][^<>\n]{0,60}>")
"""Of HTML, and tokens that end or fill up an answer ("</s>", "<|endoftext|>")."""

_SPELLED = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})
# A word's beginning is looked for behind its first letters: a pattern that begins with letters is found faster.
_LONG_FORMS = [
    (re.compile(pattern), words)
    for pattern, words in (
        (r"i(?<=\bi)'?m\b", "i am"),
        (r"can(?<=\bcan)(?:'?t|not)\b", "can not"),
        (r"won(?<=\bwon)'?t\b", "will not"),
        (r"n(?:'t|(?<=\bdon)t)\b", " not"),
        (r"\b(it|that|there|here|what|let)'s\b", r"\1 is"),
        (r"'ve\b", " have"),
        (r"'re\b", " are"),
        (r"'ll\b", " will"),
        (r"i(?<=\bi)'d\b", "i would"),
    )
]
_MARKUP = re.compile(r"[*_#>`~]+")
_QUOTED = re.compile(r'"([^"\n]*)"')
_A_WORD = 10
"""Characters up to which what stands in quotes is a word, and belongs to the sentence around it."""
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"')]*\s+|\n+")

_ENGLISH_WORDS = """
the a an and or of to in is are was were be been it its this that these those you your i my me we our
they their he she his her not no can could will would should do does did have has had with for on at by
from as but if what how why when where who which there here so about into than then some any all more
most sorry help please
"""
_OTHER_WORDS = """
der das und ist nicht ich sie wir ein eine einen mit auf zu dass aber kann dir ihnen bei leid tut von dem
los las una que para pero puedo siento esto eso como ayudarte ayudar por este les des je vous nous une
est pas qui dans pour mais suis peux avec sur cette il che non posso dispiace questo sono della nel puoi
ma gli mi um uma não nao isso você voce mas em desculpe seu sua het een niet ik voor maar dat yang tidak
dan untuk saya anda ini itu och att inte jag det som ikke jeg og nie jest bir bu
wie im den dem des einem einer mir dich sich aus nach zum zur wenn oder auch noch hier habe haben hat wird sind
meine meinen deine kannst gib sag dieser durch gegen ohne ihre seine wurde gibt nur schon sehr
el un se lo su mi sin hay ser soy eres tu algunos unas unos donde quien cuando muy hacer hago mejor manera
le la du au aux ce ces sa ses mon ma mes ton tes moi toi comment votre notre sans sous dis donne faire peut
il gli uno di da dei del delle degli alla dal dalla nella ci ho hai sei mio mia tuo tua cosa qual dammi
modo fare suo sua tra senza stato
em ao aos dos das na nos nas meu minha seus por me um uma uns mais melhor maneira fazer tem foi sem
"""
"""Common words of German, Spanish, French, Italian, Portuguese and others; those that are English words too are not
counted."""

SENTENCE = 5
"""Words from which a text is a sentence: without one common word of English, one of another language decides."""

_SHARED = frozenset(["a", "an", "come", "die", "do", "her", "in", "me", "no", "on", "so", "was"])
"""Words of English that are as common in another of these languages."""
_ENGLISH = frozenset(_ENGLISH_WORDS.split()) - _SHARED
_OTHERS = frozenset(_OTHER_WORDS.split()) - _ENGLISH - _SHARED


def said(answer: str) -> str | None:
    """What `answer` says to the user, without the thoughts before it; None where it breaks off in them."""
    end = max((match.end() for match in _THOUGHT_ENDS.finditer(answer)), default=None)
    if end is None and _THINKS.match(answer[:200]):
        return None
    return _TAG.sub("", answer[end or 0 :].strip()[:LONGEST]).strip()


def plain(text: str) -> str:
    """In lower case and in long forms ("can't" is "can not"), with plain quotes and without Markdown."""
    text = text.translate(_SPELLED).lower()
    for pattern, words in _LONG_FORMS:
        text = pattern.sub(words, text)
    return _MARKUP.sub("", text)


def sentences(text: str) -> list[str]:
    """The plain sentences of a text. What is quoted in it is left out: it is said by somebody else."""
    text = plain(text)
    text = text[1:-1] if is_quotation(text) else _QUOTED.sub(_unquoted, text)
    parts = (part.strip()[:LONGEST_SENTENCE] for part in _SENTENCE_ENDS.split(text))
    return [part for part in parts if part]


def _unquoted(quoted: re.Match[str]) -> str:
    return quoted[0] if len(quoted[1]) <= _A_WORD else '""'


def is_quotation(text: str) -> bool:
    """Whether all of a text stands between one pair of quotes."""
    return len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]


def is_english(text: str) -> bool:
    """Whether the beginning of a text is English, or too short and bare (a label, a number, code) to be anything else.

    Other alphabets are told by their letters; languages in Latin ones by their commonest words, or by their accents.
    """
    letters = [c for c in text[:600] if c.isalpha()]
    beyond = [c for c in letters if c > "\u00bf"]
    foreign = sum(c > "\u024f" for c in beyond)
    if foreign > 0.3 * len(letters):
        return False
    words = re.findall(r"[^\W\d_]+", text[:600])
    english = sum(word.lower() in _ENGLISH for word in words)
    small = _OTHERS.intersection(word for word in words if word.islower())  # capitals may be of names: Los Angeles
    others = len(small.union(_OTHERS.intersection(word.lower() for word in words[:1])))
    unlike = english == 0 and len(small) > 0 and len(words) >= SENTENCE
    accented = len(beyond) - foreign
    return not (unlike or others > max(1, english) or (accented > 0.03 * len(letters) and english < 0.1 * len(words)))
