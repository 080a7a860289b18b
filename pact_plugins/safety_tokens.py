"""`SafetyTokens`: which tokens PACT holds, with what weight, and for which tokenizer. A JSON file on disk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pact_plugins import artefacts
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest, tokenizer_fingerprint

FORMAT = 1


@dataclass(frozen=True)
class SafetyTokens:
    """The set S with its weights.

    Attributes:
        ids: vocabulary ids of S, distinct.
        weights: one per id, w_i = max(v_i, 0); at least one is positive. S+ are the ids with a positive weight.
        texts: each token as text, for people.
        vocabulary_size: number of entries of the tokenizer that the ids belong to.
        tokenizer: fingerprint of that tokenizer (`fingerprints.tokenizer_fingerprint`).
        provenance: how they were found: method, models, prompts, settings.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    texts: tuple[str, ...]
    vocabulary_size: int
    tokenizer: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ids or not len(self.ids) == len(self.weights) == len(self.texts):
            raise _unsound("as many ids as weights and texts, at least one", f"{len(self.ids)}, {len(self.weights)}")
        if len(set(self.ids)) != len(self.ids) or not all(i >= 0 for i in self.ids):
            raise _unsound("distinct ids that are not negative", str(list(self.ids)))
        if not all(math.isfinite(w) and w >= 0 for w in self.weights):
            raise _unsound("finite weights that are not negative", str(list(self.weights)))
        if not any(self.weights):
            raise PactError(
                expected="at least one safety token with a positive weight",
                got=f"{len(self.ids)} candidates, none of which the model prefers when it refuses",
                consequence="The safety loss would vanish.",
                remedy="Is this an aligned chat model, and is the base model its own? Give `safety_tokens` a list "
                "otherwise.",
            )

    @property
    def positive(self) -> list[int]:
        """Indices (into `ids`) of S+."""
        return [i for i, weight in enumerate(self.weights) if weight > 0]

    @property
    def fingerprint(self) -> str:
        """Identity of ids and weights, whatever their provenance."""
        return digest([self.ids, self.weights])

    @classmethod
    def of_list(cls, tokens: list[int | str], tokenizer: Any) -> SafetyTokens:
        """A user's own list: ids, or texts that are one token each; all have weight 1."""
        ids: list[int] = []
        for token in tokens:
            encoded = [token] if isinstance(token, int) else tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(encoded) != 1 or not 0 <= encoded[0] < len(tokenizer):
                raise PactError(
                    expected=f"entries of `pact.safety_tokens` to be one of this tokenizer's {len(tokenizer):,} tokens",
                    got=f"{token!r}, which is {encoded}",
                    consequence="PACT would hold other tokens than the ones you meant.",
                    remedy="Give the first token's id or text; a leading space makes a different token.",
                )
            ids.append(encoded[0])
        ids = list(dict.fromkeys(ids))
        return cls.build(ids, [1.0] * len(ids), tokenizer, {"method": "list"})

    @classmethod
    def build(cls, ids: list[int], weights: list[float], tokenizer: Any, provenance: dict[str, Any]) -> SafetyTokens:
        """Adds texts and the tokenizer's identity to ids and weights."""
        return cls(
            tuple(ids),
            tuple(weights),
            tuple(tokenizer.decode([i]) for i in ids),
            len(tokenizer),
            tokenizer_fingerprint(tokenizer),
            provenance,
        )

    def save(self, path: Path) -> None:
        """Writes the file in one step, with a checksum."""
        artefacts.write(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> SafetyTokens:
        """Reads a file written by `save`.

        Raises:
            PactError: no such file, not this format, or its content does not match its checksum.
        """
        try:
            content = artefacts.read(path)
            version = content.pop("format")
            if version == FORMAT:
                _Stored.model_validate(content)
                lists = {k: tuple(content.pop(k)) for k in ("ids", "weights", "texts")}
                return cls(**lists, **content)
        except (OSError, ValueError, KeyError) as error:
            raise _unsound("a file written by `pact tokens`", f"{type(error).__name__} on {path}: {error}") from error
        raise _unsound(f"a file of format {FORMAT}", f"{path}, format {version}")

    def check(self, tokenizer: Any, model_vocabulary: int) -> None:
        """Refuses tokens that were made for another tokenizer or do not fit the model's head."""
        if self.tokenizer != tokenizer_fingerprint(tokenizer):
            raise PactError(
                expected=f"safety tokens for this tokenizer, which has {len(tokenizer):,} tokens",
                got=f"safety tokens for another one, of {self.vocabulary_size:,} tokens",
                consequence="The ids would select unrelated tokens, and the loss would look plausible.",
                remedy="Run `pact tokens` for this model.",
            )
        if max(self.ids) >= model_vocabulary:
            raise PactError(
                expected=f"ids below the size of the model's head, {model_vocabulary:,}",
                got=str(max(self.ids)),
                consequence="The head has no such row.",
                remedy="Use the tokenizer that belongs to this model, or resize its embeddings.",
            )


class _Stored(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    ids: list[int]
    weights: list[float]
    texts: list[str]
    vocabulary_size: int
    tokenizer: str
    provenance: dict[str, Any]


def _unsound(expected: str, got: str) -> PactError:
    return PactError(
        expected=expected,
        got=got,
        consequence="PACT would hold arbitrary tokens.",
        remedy="Make the safety tokens again with `pact tokens`.",
    )
