"""The classifier: a logistic regression on kinds of sentences and on n-grams, in a file of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from pact_plugins.method.refusals.features import Reading, grams, stances

WEIGHTS = Path(__file__).with_name("weights.safetensors")
"""Made by `python -m benchmarks.judges.training`.

Of XSTest's labels (Roettger et al. 2024, CC BY 4.0) and of examples of our own.
"""


@dataclass(frozen=True)
class Classifier:
    """A logistic regression: sigmoid(bias + stances . w + tf-idf . v).

    The tf-idf of an n-gram that stands n times is (1 + ln n) idf; all of them together are scaled to length 1.

    Attributes:
        of_stances: w, one weight for each feature of `features.stances`.
        idf: of each n-gram that is known.
        of_grams: v, the weight of each of them.
        bias: of nothing at all.
    """

    of_stances: NDArray[np.float64]
    idf: dict[str, float]
    of_grams: dict[str, float]
    bias: float

    @classmethod
    def read(cls, path: Path = WEIGHTS) -> Classifier:
        """The classifier of a file that `write` wrote."""
        with safe_open(path, "numpy") as file:
            grams_known: list[str] = json.loads(file.metadata()["grams"])
            stances_weights, idf, weights, bias = (
                file.get_tensor(name).astype(np.float64) for name in ("stances", "idf", "grams", "bias")
            )
        return cls(
            stances_weights,
            dict(zip(grams_known, idf.tolist(), strict=True)),
            dict(zip(grams_known, weights.tolist(), strict=True)),
            float(bias[0]),
        )

    def write(self, path: Path, about: dict[str, str]) -> None:
        """Into a safetensors file, in single precision, with what there is to say about it."""
        tensors = {
            "stances": self.of_stances,
            "idf": np.array(list(self.idf.values())),
            "grams": np.array(list(self.of_grams.values())),
            "bias": np.array([self.bias]),
        }
        single = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        save_file(single, path, {**about, "grams": json.dumps(list(self.idf))})

    def __call__(self, reading: Reading) -> float:
        """Probability that an answer refuses, between 0 and 1."""
        score = self.bias + float(stances(reading) @ self.of_stances)
        score += sum(value * self.of_grams[gram] for gram, value in tf_idf(grams(reading), self.idf).items())
        return 1 / (1 + math.exp(-score))


def tf_idf(counts: Mapping[str, int], idf: Mapping[str, float]) -> dict[str, float]:
    """Tf-idf of the n-grams that have an idf, scaled to length 1."""
    found = {gram: (1 + math.log(n)) * idf[gram] for gram, n in counts.items() if gram in idf}
    length = math.sqrt(sum(value * value for value in found.values())) or 1.0
    return {gram: value / length for gram, value in found.items()}
