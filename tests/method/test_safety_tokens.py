"""The safety tokens as a value and as a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from pact_plugins.chat.fingerprints import digest
from pact_plugins.errors import PactError
from pact_plugins.method.safety_tokens import SafetyTokens, Stability
from tests import tiny

NAN, INFINITY = float("nan"), float("inf")


@pytest.fixture
def tokens() -> SafetyTokens:
    provenance = {"method": "test", "prompts": 3, "ümlaut": "é"}
    return SafetyTokens.build([7, 3, 50], [0.75, 0.1 + 0.2, 0.0], tiny.tokenizer(), provenance)


@pytest.fixture
def file(tokens: SafetyTokens, tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    tokens.save(path)
    return path


def test_round_trip(tokens: SafetyTokens, file: Path) -> None:
    """Prevents: weights that lose digits on disk, and with them the fingerprint that finds the cache."""
    loaded = SafetyTokens.load(file)
    assert loaded == tokens
    assert loaded.fingerprint == tokens.fingerprint
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_saving_replaces(tokens: SafetyTokens, file: Path) -> None:
    """Prevents: a second run keeping the first one's tokens."""
    other = replace(tokens, weights=(1.0, 1.0, 1.0))
    other.save(file)
    assert SafetyTokens.load(file) == other


def test_positive_selects_s_plus(tokens: SafetyTokens) -> None:
    """Prevents: holding tokens that the model avoids when it refuses."""
    assert tokens.positive == [0, 1]
    assert tokens.texts == tuple(tiny.tokenizer().decode([i]) for i in (7, 3, 50))


def _edit(change: Callable[[dict[str, Any]], Any], *, sign: bool = False) -> Callable[[Path], None]:
    """Changes the file's content, with its old checksum or a new one."""

    def apply(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        if sign:
            content.pop("checksum", None)
            content["checksum"] = digest(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return apply


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "empty": lambda p: p.write_text(""),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:-30]),
    "not JSON": lambda p: p.write_text("I'm sorry"),
    "not text": lambda p: p.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda p: p.write_text("[1, 2]"),
    "a number": lambda p: p.write_text("3"),
    "another id": _edit(lambda c: c["ids"].__setitem__(0, 8)),
    "another weight": _edit(lambda c: c["weights"].__setitem__(0, 0.76)),
    "another tokenizer": _edit(lambda c: c.update(tokenizer="0" * 32)),
    "another provenance": _edit(lambda c: c["provenance"].update(prompts=4)),
    "no checksum": _edit(lambda c: c.pop("checksum")),
    "no format": _edit(lambda c: c.pop("format"), sign=True),
    "a later format": _edit(lambda c: c.update(format=99), sign=True),
    "an unknown field": _edit(lambda c: c.update(colour="red"), sign=True),
    "a missing field": _edit(lambda c: c.pop("tokenizer"), sign=True),
    "ids that are no list": _edit(lambda c: c.update(ids=7), sign=True),
    "a negative id": _edit(lambda c: c.update(ids=[-1, 3, 50]), sign=True),
    "ids that are no whole numbers": _edit(lambda c: c.update(ids=[7.5, 3, 50]), sign=True),
    "truths as weights": _edit(lambda c: c.update(weights=[True, 0.5, 0.0]), sign=True),
    "a size as text": _edit(lambda c: c.update(vocabulary_size="262"), sign=True),
    "nothing but brackets": lambda p: p.write_text("[" * 10**6),
    "ids as text": _edit(lambda c: c.update(ids=["7", "3", "50"]), sign=True),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_files_are_refused(file: Path, damage: Callable[[Path], Any]) -> None:
    """Prevents: a run that holds arbitrary tokens because a file was edited, cut or mixed up."""
    damage(file)
    with pytest.raises(PactError) as caught:
        SafetyTokens.load(file)
    assert caught.value.consequence == "PACT would hold arbitrary tokens."


@pytest.mark.parametrize(
    ("ids", "weights", "says"),
    [
        ((), (), "at least one"),
        ((1, 2), (1.0,), "as many ids as weights"),
        ((1, 1), (1.0, 1.0), "distinct ids"),
        ((-1, 2), (1.0, 1.0), "not negative"),
        ((1, 2), (1.0, -0.5), "weights that are not negative"),
        ((1, 2), (1.0, NAN), "finite weights"),
        ((1, 2), (1.0, INFINITY), "finite weights"),
        ((1, 2), (0.0, 0.0), "a positive weight"),
    ],
)
def test_unsound_values_are_refused(ids: tuple[int, ...], weights: tuple[float, ...], says: str) -> None:
    """Prevents: a loss that is NaN, zero, or negative by construction."""
    with pytest.raises(PactError, match=says):
        SafetyTokens(ids, weights, ("x",) * len(ids), 100, "t")


def test_the_texts_must_be_complete() -> None:
    """Prevents: a table that shows people other tokens than the ones that are held."""
    with pytest.raises(PactError, match="as many ids as weights and texts"):
        SafetyTokens((1, 2), (1.0, 1.0), ("x",), 100, "t")


def _other_tokenizer() -> PreTrainedTokenizerFast:
    other = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    other.add_tokens(["<extra>"])
    return other


def test_another_tokenizer_is_refused(tokens: SafetyTokens) -> None:
    """Prevents: ids that select unrelated tokens, with a loss that looks plausible."""
    tokens.check(tiny.tokenizer(), len(tiny.tokenizer()))
    with pytest.raises(PactError, match="unrelated tokens"):
        tokens.check(_other_tokenizer(), 1000)


def test_a_head_without_the_rows_is_refused(tokens: SafetyTokens) -> None:
    """Prevents: an index error, or on a GPU an assertion, in the middle of the first step."""
    tokens.check(tiny.tokenizer(), 51)
    with pytest.raises(PactError, match="The head has no such row"):
        tokens.check(tiny.tokenizer(), 50)


def test_list_of_ids_and_texts() -> None:
    """Prevents: "I" and its id counting twice, or the text "7" taken for token 7."""
    tokenizer = tiny.tokenizer()
    i = tokenizer("I", add_special_tokens=False)["input_ids"][0]
    seven = tokenizer("7", add_special_tokens=False)["input_ids"][0]
    tokens = SafetyTokens.of_list(["I", i, "7", 7], tokenizer)
    assert tokens.ids == (i, seven, 7)
    assert tokens.weights == (1.0, 1.0, 1.0)
    assert tokens.texts[0] == "I"
    tokens.check(tokenizer, len(tokenizer))


@pytest.mark.parametrize("entry", ["Sorry", "", 262, 10**6, -1], ids=repr)
def test_entries_that_are_not_one_token_are_refused(entry: int | str) -> None:
    """Prevents: a word of several tokens of which only the first, or a token of the wrong id, would be held."""
    assert len(tiny.tokenizer()) == 262
    with pytest.raises(PactError, match=r"pact\.safety_tokens") as caught:
        SafetyTokens.of_list(["I", entry], tiny.tokenizer())
    assert repr(entry) in caught.value.got


def test_an_empty_list_is_refused() -> None:
    """Prevents: `safety_tokens: []` training with a loss that is always zero."""
    with pytest.raises(PactError, match="at least one"):
        SafetyTokens.of_list([], tiny.tokenizer())


def test_fingerprint_ignores_provenance_only(tokens: SafetyTokens) -> None:
    """Prevents: two different sets taken for one."""
    assert replace(tokens, provenance={}).fingerprint == tokens.fingerprint
    assert replace(tokens, weights=(0.75, 0.3, 0.0)).fingerprint != tokens.fingerprint
    assert replace(tokens, ids=(7, 3, 51)).fingerprint != tokens.fingerprint
    assert replace(tokens, ids=(3, 7, 50)).fingerprint != tokens.fingerprint


STABILITY = Stability((1.0, 0.5, 0.0), (0.6, 0.0, 0.0), (0.9, 0.4, 0.0), ("a [b]", "", ""), 0.99, 0.95)


def test_stability_is_kept(tokens: SafetyTokens, tmp_path: Path) -> None:
    """Prevents: intervals that are lost with the file, or that change which cache belongs to the tokens."""
    known = replace(tokens, stability=STABILITY)
    known.save(tmp_path / "known.json")
    assert SafetyTokens.load(tmp_path / "known.json") == known
    assert known.fingerprint == tokens.fingerprint
    assert known.agreement == pytest.approx((0.75 + 0.3 * 0.5) / 1.05)
    assert tokens.agreement is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"refusals": 0.2}, "hardly refuses: 20%"),
        ({"separation": 0.6}, "look alike"),
        ({"held": (0.5, 0.5, 0.0)}, "other prompts would give other tokens"),
        ({"refusals": None, "separation": 0.6}, None),  # of a contrast with a base model, not of answers
    ],
)
def test_doubts(tokens: SafetyTokens, change: dict[str, Any], words: str | None) -> None:
    """Prevents: tokens of a model that refuses nothing being held in silence, and doubts about sound ones."""
    doubts = replace(tokens, stability=replace(STABILITY, **change)).doubts
    assert len(doubts) == (words is not None)
    assert words is None or words in doubts[0]
    assert not tokens.doubts


def test_adding_and_excluding(tokens: SafetyTokens) -> None:
    """Prevents: added tokens that outweigh or vanish beside the found ones, and intervals that slip to other tokens."""
    known = replace(tokens, stability=STABILITY)
    changed = known.changed([50, "N"], [3], tiny.tokenizer())
    letter = tiny.tokenizer()("N", add_special_tokens=False)["input_ids"][0]
    mean = (0.75 + 0.1 + 0.2) / 2
    assert dict(zip(changed.ids, changed.weights, strict=True)) == {7: 0.75, 50: mean, letter: mean}
    assert list(changed.weights) == sorted(changed.weights, reverse=True)
    assert changed.stability is not None
    assert dict(zip(changed.ids, changed.stability.held, strict=True)) == {7: 1.0, 50: 0.0, letter: 1.0}
    assert changed.provenance["excluded"] == [3]
    assert known.changed([], [], tiny.tokenizer()) is known


def test_a_special_token_is_held_only_by_name(tokens: SafetyTokens) -> None:
    """Prevents: the end of a turn, and so the length of answers, being held unasked."""
    end = tiny.tokenizer().eos_token_id
    assert end in tokens.changed([end], [], tiny.tokenizer()).ids
    assert end in SafetyTokens.of_list([tiny.tokenizer().eos_token], tiny.tokenizer()).ids
