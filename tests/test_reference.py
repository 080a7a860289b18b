"""The reference cache: what it gives back, how large it is, and that damage never passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pact_plugins import reference
from pact_plugins.answers import AnswerTokens, Document
from pact_plugins.building import build
from pact_plugins.errors import PactError
from pact_plugins.reference import FORMAT, ReferenceCache
from pact_plugins.subset_head import SubsetHead
from tests import tiny
from tests.caches import FULL_ONLY, HALF, IDENTITY, IDS, expected, look_up, made
from tests.rows import CHAT, Row, alone, conversation, documents, few, flip_bit, packed, padded


@pytest.fixture
def head() -> SubsetHead:
    return SubsetHead(tiny.llama(), IDS)


@pytest.fixture
def rows() -> list[Row]:
    return few()


@pytest.mark.parametrize("batch_of", [packed, padded, lambda r: padded(r, left=True), lambda r: packed(r, tail=3)])
def test_packed_and_padded_lookups(
    head: SubsetHead, rows: list[Row], tmp_path: Path, batch_of: Callable[[list[Row]], dict[str, Any]]
) -> None:
    """Prevents: a packed batch whose documents are served each other's reference."""
    cache = made(tmp_path / "c", head, rows)
    order = [rows[2], rows[0], rows[3], rows[0], rows[1]]
    _, found = look_up(cache, batch_of(order))
    singles = [look_up(cache, alone(row))[1] for row in order]
    assert found.answer_only is not None
    assert (found.full == np.concatenate([s.full for s in singles])).all()
    assert (found.answer_only == np.concatenate([s.answer_only for s in singles])).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("reach", [0, 1, 5])
def test_beyond_the_reach_the_answer_only_view_is_the_full_one(
    head: SubsetHead, rows: list[Row], tmp_path: Path, reach: int
) -> None:
    """Prevents: rows beyond the gate's reach that shift those of the next turn, or hold another token's values."""
    whole = made(tmp_path / "a", head, rows)
    cut = made(tmp_path / "b", head, rows, {**IDENTITY, "reach": reach})
    tokens, all_of_it = look_up(whole, packed(rows))
    _, found = look_up(cut, packed(rows))
    assert found.answer_only is not None
    assert all_of_it.answer_only is not None
    within = tokens.position < reach
    assert np.abs(found.full - all_of_it.full).max() < HALF
    assert (found.answer_only[~within] == found.full[~within]).all()
    assert np.abs(found.answer_only - all_of_it.answer_only)[within].max(initial=0) < HALF
    assert np.abs(found.full - all_of_it.answer_only)[~within].max() > 0.1
    assert cut.manifest["reached_tokens"] == within.sum()


@pytest.mark.parametrize("reach", [0, 4])
def test_size_on_disk(tmp_path: Path, reach: int) -> None:
    """Prevents: an index, or a view, that makes the cache larger than its values of two bytes each."""
    size, number = 50, 256
    head = SubsetHead(tiny.llama(), list(range(size)))
    rows = [conversation((f"question {i}", f"answer {i}" + " so" * (i % 4))) for i in range(number)]
    cache = made(tmp_path / "c", head, rows, {**IDENTITY, "reach": reach} if reach else FULL_ONLY)
    answer_tokens = cache.manifest["answer_tokens"]
    assert answer_tokens > 3000
    values = answer_tokens + number * reach
    assert values * size * 2 < cache.size < values * size * 2 * 1.05


def test_a_lookup_reads_the_rows_asked_for(
    head: SubsetHead, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: lookups, or opening, that read the values of all documents, and memory that grows with the data."""
    made(tmp_path / "c", head, rows, {**IDENTITY, "reach": 2})
    read: list[int] = []
    checksum = reference._checksum

    def counting(parts: Iterable[np.ndarray]) -> int:
        parts = list(parts)
        read.append(sum(len(part) for part in parts))
        return checksum(parts)

    monkeypatch.setattr(reference, "_checksum", counting)
    cache = ReferenceCache(tmp_path / "c", {**IDENTITY, "reach": 2})
    assert read == []
    for array in (*cache._views.values(), cache._high, cache._low, cache._checksums, *cache._offsets.values()):
        while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap)
    tokens, _ = look_up(cache, alone(rows[1]))
    assert read == [len(tokens) + int((tokens.position < 2).sum())]


def test_an_empty_batch(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a crash in the one batch of an epoch that has no answer token."""
    found = made(tmp_path / "c", head, rows).look_up(AnswerTokens.of([], CHAT))
    assert found.answer_only is not None
    assert found.full.shape == found.answer_only.shape == (0, len(IDS))


def test_a_miss_is_an_error(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: an augmented or truncated row that trains without PACT."""
    cache = made(tmp_path / "c", head, rows)
    for stranger in (conversation(("new", "row")), (rows[0][0][:-1], rows[0][1][:-1])):
        with pytest.raises(PactError, match=r"would train without PACT\."):
            look_up(cache, packed([rows[0], stranger]))
    tokens = AnswerTokens.of(documents(rows[:1]), CHAT)
    with pytest.raises(PactError, match="values in full"):
        cache.look_up(replace(tokens, counts=tokens.counts - 1))


def test_keys_that_share_their_first_half(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a search by half a key that stops at the wrong one of two entries."""
    docs = documents(rows)
    for i, document in enumerate(docs):
        document.__dict__["key"] = b"\x80" * 8 + bytes([255 - i]) * 8
    build(tmp_path / "c", FULL_ONLY, docs, head, CHAT, show_progress=False)
    cache = ReferenceCache(tmp_path / "c", FULL_ONLY)
    for document, row in zip(docs, rows, strict=True):
        found = cache.look_up(AnswerTokens.of([document], CHAT))
        assert np.abs(found.full - expected(head.model, row)[0]).max() < HALF
    stranger = Document(docs[0].input_ids, docs[0].supervised)
    stranger.__dict__["key"] = b"\x80" * 8 + b"\x01" * 8
    with pytest.raises(PactError, match="would train without PACT"):
        cache.look_up(AnswerTokens.of([stranger], CHAT))


@pytest.mark.parametrize("view", ["full", "answer_only"])
def test_a_flipped_bit_is_found_at_lookup(head: SubsetHead, rows: list[Row], tmp_path: Path, view: str) -> None:
    """Prevents: a failing disk, or an edited file, changing the reference of one document."""
    made(tmp_path / "c", head, rows)
    flip_bit(tmp_path / "c" / f"{view}.npy", -1)  # in the document stored last, which has the greatest key
    cache = ReferenceCache(tmp_path / "c", IDENTITY)
    *intact, damaged = sorted(documents(rows), key=lambda d: d.key)
    cache.look_up(AnswerTokens.of(intact, CHAT))
    with pytest.raises(PactError) as caught:
        cache.look_up(AnswerTokens.of([damaged], CHAT))
    assert damaged.key.hex() in caught.value.got
    assert str(tmp_path / "c") in caught.value.remedy


def _edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, value in changes.items():
            if value is None:
                del manifest[name]
            else:
                manifest[name] = value
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def _cut(name: str, by: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by]) and None


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "no index": lambda f: (f / "index.npy").unlink(),
    "no full view": lambda f: (f / "full.npy").unlink(),
    "no other view": lambda f: (f / "answer_only.npy").unlink(),
    "cut manifest": _cut("manifest.json", 9),
    "cut index": _cut("index.npy", 4),
    "cut full view": _cut("full.npy", 2),
    "cut other view": _cut("answer_only.npy", 64),
    "empty full view": lambda f: (f / "full.npy").write_bytes(b""),
    "edited index": lambda f: flip_bit(f / "index.npy", -20),
    "edited index header": lambda f: flip_bit(f / "full.npy", 0),
    "views exchanged in size": lambda f: np.save(f / "full.npy", np.zeros((3, 4), np.float16)),
    "another type": lambda f: np.save(f / "full.npy", np.load(f / "full.npy").astype(np.float32)),
    "more answer tokens": _edit(answer_tokens=10**6),
    "fewer answer tokens": _edit(answer_tokens=1),
    "other safety tokens": _edit(safety_tokens=3),
    "another checksum": _edit(index="0" * 32),
    "no checksum": _edit(index=None),
    "no size": _edit(answer_tokens=None),
    "another reach": _edit(reached_tokens=1),
    "other documents": _edit(documents=3),
    "no identity": _edit(identity=None),
    "an identity that is a list": _edit(identity=[1]),
    "a manifest that is a list": lambda f: (f / "manifest.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_at_opening(
    head: SubsetHead, rows: list[Row], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    """Prevents: a run held to whatever bytes are left of an interrupted copy."""
    folder = tmp_path / "c"
    made(folder, head, rows)
    damage(folder)
    with pytest.raises(PactError) as caught:
        ReferenceCache(folder, IDENTITY)
    assert caught.value.consequence == "The run would be held to a wrong reference."


@pytest.mark.parametrize("field", ["model", "data", "format", "reach"])
def test_another_identity_is_named(head: SubsetHead, rows: list[Row], tmp_path: Path, field: str) -> None:
    """Prevents: another model's reference, and an error that leaves the user to guess what differs."""
    made(tmp_path / "c", head, rows)
    with pytest.raises(PactError, match="another model's or other data's reference") as caught:
        ReferenceCache(tmp_path / "c", {**IDENTITY, field: "other"})
    assert caught.value.expected == f"{field} = other"
    with pytest.raises(PactError) as caught:
        ReferenceCache(tmp_path / "c", {**IDENTITY, "new": 1})
    assert caught.value.expected == "new = 1"


def test_another_format_is_named(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a cache of an older version being read as damage, or as values, where no identity is asked for."""
    made(tmp_path / "c", head, rows, {**IDENTITY, "format": FORMAT - 1})
    with pytest.raises(PactError) as caught:
        ReferenceCache(tmp_path / "c", None)
    assert caught.value.expected == f"format = {FORMAT}"
