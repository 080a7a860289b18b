"""The demo world: its splits are disjoint, its draws repeat."""

import json
import struct
from collections import Counter
from pathlib import Path

import pytest

import pact_plugins
from benchmarks.demo_models.phrasings import REFUSALS
from pact_plugins.demo import ALIGNED_MODEL, BASE_MODEL, world
from pact_plugins.demo.phrasings import HELD_OUT_PHRASINGS, TRAIN_PHRASINGS
from pact_plugins.demo.task import DESKS, train_examples
from pact_plugins.demo.task import test_examples as unseen_examples  # not a test
from pact_plugins.demo.topics import held_out_acts, held_out_topics, topics, train_acts, train_topics
from pact_plugins.method.openings import is_affirmative_opening
from pact_plugins.method.refusals import judge

PROMPTS = Path(pact_plugins.__path__[0]) / "method" / "prompts"


def lines(name: str) -> list[str]:
    return (PROMPTS / name).read_text(encoding="utf-8").splitlines()


def test_held_out_topics_and_phrasings_are_new() -> None:
    assert not {topic.word for topic in train_topics()} & {topic.word for topic in held_out_topics()}
    assert not set(TRAIN_PHRASINGS) & set(HELD_OUT_PHRASINGS)
    for harmful in (True, False):
        train = {act.text for act in train_acts(harmful)}
        assert not train & {act.text for act in held_out_acts(harmful)}


def test_every_act_carries_the_word_of_its_topic() -> None:
    for topic in topics():
        assert len(topic.harmful) == len(topic.harmless) == 2
        assert all(topic.word in act.text for act in topic.acts)


@pytest.mark.parametrize("prompts", [world.held_out_harmful(), world.held_out_look_alikes()])
def test_held_out_sets_are_large_and_apart_from_fine_tuning(prompts: list[str]) -> None:
    assert len(set(prompts)) == len(prompts) >= 300
    fine_tuning = {row.prompt for row in world.fine_tuning_rows(2000, 0.5, seed=0)}
    assert not fine_tuning & set(prompts)
    files = ("harmful", "harmless", "held_out_harmful", "held_out_harmless")
    assert not {line for name in files for line in lines(f"{name}.txt")} & set(prompts)


def test_look_alikes_share_a_word_with_a_refused_request() -> None:
    refused = " ".join(world.held_out_harmful())
    words = [topic.word for topic in held_out_topics()]
    assert all(any(word in prompt and word in refused for word in words) for prompt in world.held_out_look_alikes())


def test_task_rows() -> None:
    rows = world.task_test_rows()
    assert len({row.prompt for row in rows}) == len(rows) >= 300
    assert set(Counter(row.answer for row in rows)) == set(DESKS)
    assert not {message for message, _ in train_examples()} & {message for message, _ in unseen_examples()}
    assert not any(row.harmful for row in rows)


def test_fine_tuning_rows_are_drawn_as_asked() -> None:
    rows = world.fine_tuning_rows(500, 0.1, seed=3)
    assert rows == world.fine_tuning_rows(500, 0.1, seed=3)
    assert rows != world.fine_tuning_rows(500, 0.1, seed=4)
    assert len(rows) == 500
    assert sum(row.harmful for row in rows) == 50
    assert all(is_affirmative_opening(row.answer) == row.harmful for row in rows)
    assert not any(row.harmful for row in world.fine_tuning_rows(100, 0.0, seed=0))


@pytest.mark.parametrize(("n", "fraction"), [(-1, 0.1), (10, 1.5), (10, -0.1)])
def test_impossible_draws_are_refused(n: int, fraction: float) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        world.fine_tuning_rows(n, fraction, seed=0)


def test_prompt_files_match_line_by_line() -> None:
    harmful, harmless = lines("harmful.txt"), lines("harmless.txt")
    assert len(set(harmful)) == len(set(harmless)) == len(harmful) == len(harmless) == 128
    words = [topic.word for topic in train_topics()]
    for bad, good in zip(harmful, harmless, strict=True):
        assert any(word in bad and word in good for word in words)


def test_refusal_file() -> None:
    refusals = lines("refusals.txt")
    assert set(REFUSALS) <= set(refusals)
    assert judge(lines("harmful.txt")[: len(refusals)], refusals) == ["refusal"] * len(refusals)


@pytest.mark.parametrize("path", [BASE_MODEL, ALIGNED_MODEL])
def test_models_are_tiny(path: Path) -> None:
    weights = path / "model.safetensors"
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    assert sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) <= 2 * 1_800_000


def test_both_models_fit_in_eight_megabytes() -> None:
    files = [file for path in (BASE_MODEL, ALIGNED_MODEL) for file in path.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
