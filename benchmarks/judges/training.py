"""Trains the classifier of `pact_plugins.method.refusals`.

    python -m benchmarks.judges.training LABELS

LABELS is a folder with a JSONL file a model (`id`, `prompt`, `answer`, `label`): answers to XSTest's prompts, labelled
by people (Roettger et al. 2024, arXiv 2308.01263; CC BY 4.0). They are not part of this repository; our own examples
(`written.jsonl`) are, and are trained on as well. Writes `pact_plugins/method/refusals/weights.safetensors`.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from pact_plugins.method.refusals.classifier import WEIGHTS, Classifier, tf_idf
from pact_plugins.method.refusals.features import grams, stances
from pact_plugins.method.refusals.judging import EARLY, declines, read

WRITTEN = Path(__file__).with_name("written.jsonl")
CUTS = (None, 300, 120)
"""Characters after which a copy of each answer is cut off: real runs write 20 to 64 tokens."""
OF_WRITTEN = 3.0
"""Weight of an example of ours, where an answer of a model has 1: ours are few, and each is another kind."""
PENALTY, OF_STANCES = 1 / 3, 0.13
"""L2 penalty of a weight, and the scale of stances beside tf-idf: what is smaller is penalised more."""
LEAST_TOPICS = 4
"""Topics in which an n-gram must stand; those of fewer are about the topic."""
PROMPTS_A_TOPIC = 25
"""XSTest's prompts come in topics ("homonyms", "discrimination") of 25."""


@dataclass(frozen=True)
class Labelled:
    """An answer with a person's label.

    Attributes:
        topic: what it is about: prompts of one topic are much alike.
        prompt, answer: the exchange.
        label: `refusal`, `partial` or `compliance`.
    """

    topic: str
    prompt: str
    answer: str
    label: str


def labelled(path: Path) -> list[Labelled]:
    """The rows of one model."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [Labelled(_topic(row), row["prompt"], row["answer"], row["label"]) for row in rows]


def _topic(row: Mapping[str, str]) -> str:
    return row.get("kind") or str((int(row["id"].rpartition("-")[2]) - 1) // PROMPTS_A_TOPIC)


def train(models: Sequence[Sequence[Labelled]]) -> Classifier:
    """Trains on the answers of some models and on our own examples.

    Only answers that decline nothing outright are learned from, whole and cut: the rule decides on the others, and
    would leave nothing to learn. `partial` ones are left out. Refusals and the rest weigh the same in sum.
    """
    rows = [(row, 1.0) for of_model in models for row in of_model]
    rows += [(row, OF_WRITTEN) for row in labelled(WRITTEN)]
    known = [
        (features, row, weight)
        for row, weight in rows
        for cut in CUTS
        if row.label != "partial" and (features := _to_learn(row.prompt, cut_at(row.answer, cut))) is not None
    ]
    counts = [count for (_, count), _, _ in known]
    idf = _idf(counts, [row.topic for _, row, _ in known])
    place = {gram: i for i, gram in enumerate(idf)}
    of_grams = np.zeros((len(known), len(idf)))
    for i, count in enumerate(counts):
        for gram, value in tf_idf(count, idf).items():
            of_grams[i, place[gram]] = value
    of_stances = np.array([stance for (stance, _), _, _ in known])
    refuses = np.array([row.label == "refusal" for _, row, _ in known])
    weights = np.array([weight for _, _, weight in known]) / len(CUTS)
    for of_class in (refuses, ~refuses):
        weights[of_class] *= len(known) / len(CUTS) / 2 / weights[of_class].sum()
    found, bias = _fit(np.hstack([of_stances * OF_STANCES, of_grams]), refuses, weights)
    n = of_stances.shape[1]
    return Classifier(found[:n] * OF_STANCES, idf, dict(zip(idf, found[n:].tolist(), strict=True)), bias)


@cache  # the benchmark trains 21 times on much the same answers
def _to_learn(prompt: str, answer: str) -> tuple[np.ndarray, Counter[str]] | None:
    """Stances and n-grams of an answer; None where it declines outright."""
    reading = read(prompt, answer)
    assert reading is not None, "no model of these thinks aloud"
    place = declines(reading)
    return None if place is not None and place < EARLY else (stances(reading), grams(reading))


def cut_at(answer: str, characters: int | None) -> str:
    """The answer up to the last whole word before so many characters."""
    return answer if characters is None or len(answer) <= characters else answer[:characters].rpartition(" ")[0]


def _idf(counts: Sequence[Counter[str]], topics: Sequence[str]) -> dict[str, float]:
    """Smoothed inverse document frequencies, ln((1 + N) / (1 + n)) + 1, of n-grams that stand in enough topics."""
    stands_in: dict[str, set[str]] = defaultdict(set)
    times: Counter[str] = Counter()
    for count, topic in zip(counts, topics, strict=True):
        times.update(count.keys())
        for gram in count:
            stands_in[gram].add(topic)
    common = sorted(gram for gram, of_gram in stands_in.items() if len(of_gram) >= LEAST_TOPICS)
    return {gram: math.log((1 + len(counts)) / (1 + times[gram])) + 1 for gram in common}


def _fit(features: np.ndarray, refuses: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Weights and bias of the least weighted cross-entropy plus `PENALTY` / 2 times the squared weights."""
    x, y, w = (torch.from_numpy(np.asarray(a, np.float64)) for a in (features, refuses, weights))
    x = x.to_sparse()  # one feature of fifty is not 0
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        scores = x @ parameters[:-1] + parameters[-1]
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(scores, y, w, reduction="sum")
        total = entropy + PENALTY / 2 * parameters[:-1].square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    found = parameters.detach().numpy()
    return found[:-1], float(found[-1])


def main(folder: Path) -> None:
    """Trains on every model of the folder, and writes the shipped weights."""
    paths = sorted(folder.glob("*.jsonl"))
    about = {
        "trained on": f"answers of {', '.join(path.stem for path in paths)} to XSTest's prompts, and our own examples",
        "labels": "XSTest, Roettger et al. 2024 (arXiv 2308.01263), CC BY 4.0",
        "by": "python -m benchmarks.judges.training",
    }
    train([labelled(path) for path in paths]).write(WEIGHTS, about)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
