"""The reference cache: what it gives back, how large it is, and that damage never passes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pact_plugins.chat.answers import AnswerTokens, Document
from pact_plugins.errors import PactError
from pact_plugins.method.reference import open_or_build
from pact_plugins.model.subset_head import SubsetHead
from pact_plugins.storage import files, segment
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.identity import FORMAT
from pact_plugins.storage.segment import Segment
from tests import tiny
from tests.caches import FULL_ONLY, HALF, IDENTITY, IDS, but, counts, expected, look_up, made
from tests.caches import segment as only
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
    cut = made(tmp_path / "b", head, rows, but(reach=reach))
    tokens, all_of_it = look_up(whole, packed(rows))
    _, found = look_up(cut, packed(rows))
    assert found.answer_only is not None
    assert all_of_it.answer_only is not None
    within = tokens.position < reach
    assert np.abs(found.full - all_of_it.full).max() < HALF
    assert (found.answer_only[~within] == found.full[~within]).all()
    assert np.abs(found.answer_only - all_of_it.answer_only)[within].max(initial=0) < HALF
    assert np.abs(found.full - all_of_it.answer_only)[~within].max() > 0.1
    assert counts(cut)["answer_only"] == within.sum()


@pytest.mark.parametrize("reach", [0, 4])
def test_size_on_disk(tmp_path: Path, reach: int) -> None:
    """Prevents: an index, or a view, that makes the cache larger than its values of two bytes each."""
    size, number = 50, 256
    head = SubsetHead(tiny.llama(), list(range(size)))
    rows = [conversation((f"question {i}", f"answer {i}" + " so" * (i % 4))) for i in range(number)]
    cache = made(tmp_path / "c", head, rows, but(reach=reach) if reach else FULL_ONLY)
    answer_tokens = counts(cache)["full"]
    assert answer_tokens > 3000
    values = answer_tokens + number * reach
    assert values * size * 2 < cache.size < values * size * 2 * 1.05


def test_a_lookup_reads_the_rows_asked_for(
    head: SubsetHead, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: lookups, or opening, that read the values of all documents, and memory that grows with the data."""
    made(tmp_path / "c", head, rows, but(reach=2))
    read: list[int] = []
    checksum = segment.checksum

    def counting(parts: Iterable[np.ndarray]) -> int:
        parts = list(parts)
        read.append(sum(len(part) for part in parts))
        return checksum(parts)

    monkeypatch.setattr(segment, "checksum", counting)
    cache = ReferenceCache(tmp_path / "c", but(reach=2))
    assert read == []
    (opened,) = cache.stores[0].segments
    for array in (*opened.views.values(), opened.keys, opened.checksums, *opened._offsets.values()):
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
    cache, _ = open_or_build(tmp_path / "c", FULL_ONLY, docs, head, CHAT, show_progress=False)
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
    flip_bit(only(tmp_path / "c") / f"{view}.safetensors", -1)  # in the one with the greatest key
    cache = ReferenceCache(tmp_path / "c", IDENTITY)
    *intact, damaged = sorted(documents(rows), key=lambda d: d.key)
    cache.look_up(AnswerTokens.of(intact, CHAT))
    with pytest.raises(PactError) as caught:
        cache.look_up(AnswerTokens.of([damaged], CHAT))
    assert damaged.key.hex() in caught.value.got
    assert str(tmp_path / "c") in caught.value.remedy


def _edit(**changes: Any) -> Callable[[Path], None]:
    """Changes entries of the manifest by hand; None removes one."""

    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(_changed(manifest, changes)))

    return apply


def _forge(**changes: Any) -> Callable[[Path], None]:
    """The same with a manifest whose checksum is right."""

    def apply(folder: Path) -> None:
        manifest = _changed(files.read(folder / "manifest.json"), changes)
        files.write(folder / "manifest.json", manifest)

    return apply


def _changed(manifest: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**manifest, **changes}.items() if value is not None}


def _cut(name: str, by: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by]) and None


def _replace(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Puts a sound safetensors file with another tensor of the same name in the place of one."""

    def apply(folder: Path) -> None:
        file = folder / f"{name}.safetensors"
        save_file({name: change(load_file(file)[name])}, file)

    return apply


def _exchange(folder: Path) -> None:
    full, answer_only = folder / "full.safetensors", folder / "answer_only.safetensors"
    full.rename(folder / "kept")
    answer_only.rename(full)
    (folder / "kept").rename(answer_only)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "no index": lambda f: (f / "index.safetensors").unlink(),
    "no full view": lambda f: (f / "full.safetensors").unlink(),
    "no other view": lambda f: (f / "answer_only.safetensors").unlink(),
    "cut manifest": _cut("manifest.json", 9),
    "cut index": _cut("index.safetensors", 4),
    "cut full view": _cut("full.safetensors", 2),
    "cut other view": _cut("answer_only.safetensors", 64),
    "longer full view": lambda f: (f / "full.safetensors").open("ab").write(b"\0\0"),
    "empty full view": lambda f: (f / "full.safetensors").write_bytes(b""),
    "edited index": lambda f: flip_bit(f / "index.safetensors", -20),
    "edited header": lambda f: flip_bit(f / "full.safetensors", 20),
    "views exchanged": _exchange,
    "another shape": _replace("full", lambda values: values[:-1]),
    "the same size in another shape": _replace("full", lambda values: values.reshape(-1, 2)),
    "another type": _replace("full", lambda values: values.view(np.int16)),
    "offsets out of order": _replace("index", lambda index: np.ascontiguousarray(index[:, ::-1])),
    "an edited manifest": _edit(width=1),
    "a manifest without its checksum": _edit(checksum=None),
    "a manifest for another model": _edit(identity=but(model="n").model_dump()),
    "more answer tokens": _forge(values={"full": 10**6, "answer_only": 10**6}),
    "fewer answer tokens": _forge(values={"full": 1, "answer_only": 1}),
    "other safety tokens": _forge(width=3),
    "another checksum": _forge(index="0" * 32),
    "no checksum": _forge(index=None),
    "no size": _forge(values=None),
    "another reach": _forge(values={"full": 96, "answer_only": 1}),
    "other documents": _forge(documents=3),
    "more documents than fit a machine": _forge(documents=2**60),
    "more documents than fit a word": _forge(documents=2**80),
    "fewer than no documents": _forge(documents=-1),
    "a size that is a text": _forge(documents="4"),
    "a size that is a truth": _forge(width=True),
    "more than a manifest holds": _forge(more=1),
    "no identity": _forge(identity=None),
    "an identity with more in it": _forge(identity={**IDENTITY.model_dump(), "data": "d"}),
    "an identity that is a list": _forge(identity=[1]),
    "a manifest that is a list": lambda f: (f / "manifest.json").write_text("[]"),
    "a manifest of nothing but brackets": lambda f: (f / "manifest.json").write_text("[" * 10**6),
    "a manifest that is a folder": lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir()),
    "files of format 2": lambda f: (f / "manifest.json").write_text(json.dumps({"identity": {"format": 2}})),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found_at_opening(
    head: SubsetHead, rows: list[Row], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    """Prevents: a run held to whatever bytes are left of an interrupted copy."""
    folder = tmp_path / "c"
    made(folder, head, rows)
    damage(only(folder))
    with pytest.raises(PactError) as caught:
        ReferenceCache(folder, IDENTITY)
    assert caught.value.consequence == "The run would be held to a wrong reference."
    assert str(folder) in caught.value.remedy


def test_every_byte_counts(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a byte of any file that nothing watches over."""
    made(tmp_path, head, rows)
    folder = only(tmp_path)
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    positions = 0
    for file in folder.iterdir():
        content = file.read_bytes()
        for position in range(len(content)):
            flip_bit(file, position, position % 8)
            with pytest.raises(PactError):
                Segment(folder).verify()
            positions += 1
        file.write_bytes(content)
    assert positions > 1000
    ReferenceCache(tmp_path, IDENTITY).verify()


@pytest.mark.parametrize("name", ["manifest.json", "index.safetensors", "full.safetensors", "answer_only.safetensors"])
def test_files_of_another_cache(head: SubsetHead, rows: list[Row], tmp_path: Path, name: str) -> None:
    """Prevents: another model's reference of the same data, each file of which is sound by itself."""
    made(tmp_path / "c", head, rows)
    other = but(model="n")
    made(tmp_path / "c", SubsetHead(tiny.llama(1), IDS), rows, other)
    (only(tmp_path / "c", other) / name).replace(only(tmp_path / "c") / name)
    with pytest.raises(PactError):
        look_up(ReferenceCache(tmp_path / "c", IDENTITY), packed(rows))


@pytest.mark.parametrize(
    "values", [{"full": 96, "../c/answer_only": 96}, {"answer_only": 96}, {"answer_only": 96, "full": 96}, {}]
)
def test_names_of_files_are_known_beforehand(
    head: SubsetHead, rows: list[Row], tmp_path: Path, values: dict[str, int]
) -> None:
    """Prevents: a manifest from elsewhere that leads out of its folder, or to other views than it says."""
    made(tmp_path / "c", head, rows)
    _forge(values=values)(only(tmp_path / "c"))
    with pytest.raises(PactError, match="the views"):
        ReferenceCache(tmp_path / "c", IDENTITY)


def test_forged_offsets_and_values(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: other errors than this package's, or values of other rows, where every checksum was made to fit."""
    made(tmp_path, head, rows)
    folder = only(tmp_path)
    index = load_file(folder / "index.safetensors")["index"]
    values = {view: load_file(folder / f"{view}.safetensors")[view] for view in ("full", "answer_only")}
    for offsets in (index[3, ::-1], index[3] + np.uint64(2**40), np.full(len(rows), 2**64 - 1, np.uint64)):
        _replace("index", lambda index, offsets=offsets: np.concatenate([index[:3], offsets[None], index[4:]]))(folder)
        _forge(index=segment.file_checksum(folder / "index.safetensors"))(folder)
        with pytest.raises(PactError, match=r"do not match their checksum|values in full"):
            look_up(ReferenceCache(tmp_path, IDENTITY), packed(rows))
    values["full"][0, 0] = np.nan
    _replace("full", lambda _: values["full"])(folder)
    first = [values[view][: int(index[3 + i, 1])] for i, view in enumerate(values)]
    index[2, 0] = segment.checksum(first)
    _replace("index", lambda _: index)(folder)
    _forge(index=segment.file_checksum(folder / "index.safetensors"))(folder)
    with pytest.raises(PactError, match="not finite"):
        ReferenceCache(tmp_path, IDENTITY).verify()


def test_files_are_safetensors(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: files that only this package can read."""
    cache = made(tmp_path / "c", head, rows)
    found = load_file(only(tmp_path / "c") / "full.safetensors")["full"]
    assert found.dtype == np.float16
    assert found.shape == (counts(cache)["full"], len(IDS))
    assert (np.sort(found, 0) == np.sort(look_up(cache, packed(rows))[1].full, 0)).all()


@pytest.mark.parametrize("changes", [{"model": "n"}, {"chat": "n"}, {"format": 9}, {"reach": 2}])
def test_a_renamed_store_is_named(head: SubsetHead, rows: list[Row], tmp_path: Path, changes: dict[str, Any]) -> None:
    """Prevents: another model's reference, and an error that leaves the user to guess what differs."""
    made(tmp_path, head, rows)
    other = but(**changes)
    (tmp_path / IDENTITY.name).rename(tmp_path / other.name)
    with pytest.raises(PactError, match="another model's reference") as caught:
        ReferenceCache(tmp_path, other)
    ((name, value),) = changes.items()
    assert caught.value.expected == f"{name} = {value}"


def test_another_format_is_named(head: SubsetHead, rows: list[Row], tmp_path: Path) -> None:
    """Prevents: a cache of an older version being read as damage, or as values, where no identity is asked for."""
    old = but(format=FORMAT - 1)
    made(tmp_path, head, rows, old)
    with pytest.raises(PactError) as caught:
        Segment(only(tmp_path, old))
    assert caught.value.expected == f"format = {FORMAT}"
