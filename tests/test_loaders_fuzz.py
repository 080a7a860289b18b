"""Whatever bytes a file holds: its loader gives what was stored or an error of its own, and never something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pact_plugins.chat.answers import AnswerTokens
from pact_plugins.chat.fingerprints import keys_fingerprint
from pact_plugins.errors import PactError
from pact_plugins.method.asking import Asked
from pact_plugins.method.prompting import answered
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.storage import files
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.segment import Segment, checksum
from pact_plugins.storage.writer import CacheWriter, Place
from tests.caches import IDENTITY
from tests.rows import CHAT, documents, few

TOKENS = SafetyTokens((7, 3), (0.75, 0.0), ("a", "é"), 262, "t", {"method": "test", "prompts": 3})
ANSWERS = Asked(
    [answered([10, 11], [12]), answered([20], [21, 22])],
    torch.tensor([[12, 7], [21, 22]], dtype=torch.int32),
    torch.tensor([[0.5, 0.25], [0.5, 0.5]]),
    torch.tensor([[12, 7], [21, 22], [22, 9]], dtype=torch.int32),
    torch.log(torch.tensor([[0.5, 0.25], [0.5, 0.4], [0.9, 0.1]])),
)
DOCUMENTS = sorted(documents(few(3)), key=lambda d: d.key)
SEGMENT = ("manifest.json", "index.safetensors", "full.safetensors", "answer_only.safetensors")
PARTIAL = (*SEGMENT[1:], "progress.safetensors")
NAME = f"{IDENTITY.name}/{keys_fingerprint(d.key for d in DOCUMENTS)}"
CACHE = f"cache/{NAME}"
SIZE = 3
"""Safety tokens of the cache."""

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
pieces = st.binary(max_size=12) | st.sampled_from(
    [b"null", b"1e999", b"NaN", b"-1", b"[", b"]", b"{", b"}", b'"', b",", b"\\ud800", b"9" * 5000, b"[" * 100_000]
)


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A piece of a file replaced, cut out, put in, taken from elsewhere in it, or one bit flipped."""
    start, length, source, bit = (draw(st.floats(0, 1)) for _ in range(4))
    kind, piece = draw(st.sampled_from(["replace", "insert", "cut", "truncate", "copy", "flip"])), draw(pieces)

    def apply(content: bytes) -> bytes:
        first = int(start * len(content))
        last = first + int(length * (len(content) - first))
        if kind == "flip":
            at = min(first, len(content) - 1)
            return content[:at] + bytes([content[at] ^ 1 << int(bit * 7)]) + content[at + 1 :]
        origin = int(source * len(content))
        new = {"replace": piece, "insert": piece, "copy": content[origin : origin + last - first]}.get(kind, b"")
        rest = {"insert": content[first:], "truncate": b""}.get(kind, content[last:])
        return content[:first] + new + rest

    return apply


def values_of(view: str, document: int) -> np.ndarray:
    tokens = AnswerTokens.of([DOCUMENTS[document]], CHAT)
    shape = (len(tokens), SIZE)
    return np.random.default_rng([document, len(view)]).uniform(-20, 0, shape).astype(np.float16)


def writer_of(target: Path) -> CacheWriter:
    """One batch for each document and view."""
    counts = np.asarray([len(values_of("full", i)) for i in range(len(DOCUMENTS))])
    batches = [[Place(v, i, 0, int(counts[i]))] for v in IDENTITY.views for i in range(len(DOCUMENTS))]
    keys = [d.key for d in DOCUMENTS]
    return CacheWriter(target / IDENTITY.name, IDENTITY, keys, dict.fromkeys(IDENTITY.views, counts), SIZE, batches)


def store(writer: CacheWriter, numbers: list[int]) -> None:
    for number in numbers:
        (place,) = writer.batches[number]
        writer.store(number, [(place, values_of(place.view, place.document))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files of each kind."""
    folder = tmp_path_factory.mktemp("files")
    TOKENS.save(folder / "tokens.json")
    ANSWERS.save(folder / "answers.safetensors")
    with writer_of(folder / "cache") as writer:
        store(writer, writer.to_do())
        writer.finish()
    with writer_of(folder / "begun") as writer:
        store(writer, [0, 2, 4])
    return folder


def check_tokens(path: Path) -> None:
    assert SafetyTokens.load(path) == TOKENS


def check_answers(path: Path) -> None:
    found = Asked.load(path)
    assert [d.key for d in found.documents] == [d.key for d in ANSWERS.documents]
    for name in ("likely", "probabilities", "candidates", "log_probabilities"):
        assert torch.equal(getattr(found, name), getattr(ANSWERS, name))


def check_cache(path: Path) -> None:
    """Opens, reads and verifies the cache that a file belongs to."""
    cache = ReferenceCache(path.parents[2], IDENTITY)
    cache.verify()
    found = cache.look_up(AnswerTokens.of(DOCUMENTS, CHAT))
    assert found.answer_only is not None
    for view, rows in (("full", found.full), ("answer_only", found.answer_only)):
        assert (rows == np.concatenate([values_of(view, i) for i in range(len(DOCUMENTS))])).all()


CHECKS: dict[str, Callable[[Path], None]] = {
    "tokens.json": check_tokens,
    "answers.safetensors": check_answers,
    **{f"{CACHE}/{name}": check_cache for name in SEGMENT},
}


def refused_or_same(path: Path, content: bytes, check: Callable[[Path], None]) -> bool:
    """Whether a loader refuses the content; if not, it has to find what was stored."""
    sound = path.read_bytes()
    path.write_bytes(content)
    try:
        check(path)
    except PactError:
        return True
    finally:
        path.write_bytes(sound)
    return False


@pytest.mark.parametrize("name", CHECKS)
@given(edit=edits())
def test_edited_files(folder: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """Prevents: damage that passes for another model's tokens, answers or reference, or ends in a stack trace."""
    path = folder / name
    content = edit(path.read_bytes())
    refused = refused_or_same(path, content, CHECKS[name])
    # What is read as JSON may be written in another way.
    assert refused or path.suffix == ".json" or CHECKS[name] is check_answers or content == path.read_bytes()


@pytest.mark.parametrize("name", CHECKS)
@given(content=st.binary(max_size=200) | json_values.map(repr).map(str.encode))
def test_arbitrary_files(folder: Path, name: str, content: bytes) -> None:
    """Prevents: any other file in the place of ours being read as something."""
    assert refused_or_same(folder / name, content, CHECKS[name])


@pytest.mark.parametrize("name", ["tokens.json", f"{CACHE}/manifest.json"])
@given(data=st.data())
def test_forged_files(folder: Path, name: str, data: st.DataObject) -> None:
    """Prevents: other errors than this package's where a file of the wrong content has the right checksum."""
    path = folder / name
    content = files.read(path)
    inner = data.draw(st.sampled_from([content, *(v for v in content.values() if isinstance(v, dict))]))
    inner[data.draw(st.sampled_from(sorted(inner)) | st.text(max_size=4))] = data.draw(json_values)
    sound = path.read_bytes()
    files.write(path, content)
    try:
        if name == "tokens.json":
            SafetyTokens.load(path).positive  # noqa: B018
        else:
            Segment(path.parent).verify()
    except PactError:
        pass
    finally:
        path.write_bytes(sound)


@given(
    name=st.sampled_from(["ids", "lengths", "likely", "probabilities", "candidates", "log_probabilities", "more"]),
    values=st.lists(st.integers(-3, 30), max_size=4) | st.lists(st.floats(width=32), max_size=4),
    twice=st.booleans(),
)
def test_forged_answers(folder: Path, name: str, values: list[Any], twice: bool) -> None:
    """Prevents: a file of the right checksum that gives prompts without answers, or another error than ours."""
    sound, forged = folder / "answers.safetensors", folder / "forged" / "answers.safetensors"
    tensors = files.read_tensors(sound)
    files.write_tensors(forged, {**tensors, name: torch.tensor([values, values] if twice else values)})
    try:
        found = Asked.load(forged)
    except PactError:
        return
    assert all(d.supervised.any() and not d.supervised[0] and d.input_ids.min() >= 0 for d in found.documents)
    assert len(found.candidates) == len(found.log_probabilities) == sum(map(len, found.answers()))


@pytest.mark.parametrize("name", PARTIAL)
@given(edit=edits())
def test_edited_builds(folder: Path, name: str, edit: Callable[[bytes], bytes]) -> None:
    """Prevents: a build that continues on damaged values, or cannot be continued nor begun anew."""
    target = folder / "c"
    shutil.copytree(folder / "begun", target)
    path = target / f"{NAME}.partial" / name
    path.write_bytes(edit(path.read_bytes()))
    try:
        with writer_of(target) as writer:
            store(writer, writer.to_do())
            writer.finish()
        check_cache(target / NAME / "manifest.json")
        for file in SEGMENT[1:]:
            assert (target / NAME / file).read_bytes() == (folder / CACHE / file).read_bytes()
    finally:
        shutil.rmtree(target, ignore_errors=True)


@given(content=st.dictionaries(st.text(max_size=4).filter(lambda k: k != "checksum"), json_values, max_size=4))
def test_artefacts_round_trip(folder: Path, content: dict[str, Any]) -> None:
    """Prevents: content that is written and then refused, or comes back changed."""
    files.write(folder / "any.json", content)
    assert repr(files.read(folder / "any.json")) == repr(content)


@given(parts=st.lists(st.binary(max_size=8), max_size=4), cut=st.floats(0, 1))
def test_checksums_are_of_the_bytes(parts: list[bytes], cut: float) -> None:
    """Prevents: a checksum that depends on how values were cut into arrays."""
    whole = np.frombuffer(b"".join(parts), np.uint8)
    at = int(cut * len(whole))
    assert (
        checksum([whole]) == checksum([whole[:at], whole[at:]]) == checksum(np.frombuffer(p, np.uint8) for p in parts)
    )
