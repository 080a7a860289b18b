"""`SafetyTokens`: which tokens PACT holds, with what weight, and for which tokenizer. A JSON file on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config

from pact_plugins.chat.fingerprints import digest, tokenizer_fingerprint
from pact_plugins.errors import PactError
from pact_plugins.storage import files

FORMAT = 2

UNSTABLE, ALIKE, HARDLY_REFUSES = 0.8, 0.8, 0.5
"""Below these, tokens are doubted: agreement, and separation and refusals of `Stability`. Conventions of this package:
the shipped aligned model lies above all of them, the one that never learned to refuse does not."""

LEAST_REFUSALS = 0.2
"""Share of refused harmful prompts below which no run goes by the tokens found: what a model prefers in answers that do
not refuse is no safety token. A convention: SmolLM2-135M-Instruct, which was never aligned, refuses 11%."""


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True)
class Stability:
    """How far the tokens depend on the prompts that they were found with.

    Attributes:
        held: for each token, the share of bootstrap resamples of the prompts in which it is held (its weight is
            positive).
        low: for each token, the 2.5th percentile of its weight over the resamples.
        high: the 97.5th.
        examples: for each token, part of an answer in which the model wrote it, the token in brackets; empty if none.
        separation: how well one half of the prompts tells refusing answers of the other half from harmless ones: 1
            always, 0.5 not at all (`contrast.Contrast.separation`).
        refusals: share of the model's own answers to the harmful prompts that refuse, of those that the default
            judge can judge. None if it can judge none, or the tokens were not found in own answers.
    """

    held: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    examples: tuple[str, ...]
    separation: float
    refusals: float | None = None


@with_config(ConfigDict(strict=True, extra="forbid"))
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
        stability: how far they depend on the prompts; None for tokens that were named rather than found.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    texts: tuple[str, ...]
    vocabulary_size: int
    tokenizer: str
    provenance: dict[str, Any] = field(default_factory=dict)
    stability: Stability | None = None

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
        known = self.stability
        if known and not all(len(v) == len(self.ids) for v in (known.held, known.low, known.high, known.examples)):
            raise _unsound("a stability of each token", f"{len(known.held)} for {len(self.ids)} tokens")

    @property
    def positive(self) -> list[int]:
        """Indices (into `ids`) of S+."""
        return [i for i, weight in enumerate(self.weights) if weight > 0]

    @property
    def held(self) -> dict[int, float]:
        """Weight of each id of S+."""
        return {self.ids[i]: self.weights[i] for i in self.positive}

    @property
    def fingerprint(self) -> str:
        """Identity of ids and weights, whatever their provenance."""
        return digest([self.ids, self.weights])

    @property
    def agreement(self) -> float | None:
        """Share of the weight that is held again in a resample of the prompts, on average; None if it is not known."""
        if self.stability is None:
            return None
        kept = sum(weight * held for weight, held in zip(self.weights, self.stability.held, strict=True))
        return kept / sum(self.weights)

    @property
    def doubts(self) -> list[str]:
        """Reasons not to trust that these tokens are the ones that refuse, in words."""
        if self.stability is None or self.agreement is None:
            return []
        found, doubts = self.stability, list[str]()
        if found.refusals is not None and found.refusals < HARDLY_REFUSES:
            doubts.append(
                f"the model hardly refuses: {found.refusals:.0%} of its answers to harmful prompts refuse, so that "
                "there is little to hold"
            )
        if found.refusals is not None and found.separation < ALIKE:
            doubts.append(
                f"its answers to harmful and to harmless prompts look alike (separation {found.separation:.2f}, where "
                "0.5 is chance)"
            )
        if self.agreement < UNSTABLE:
            doubts.append(
                f"other prompts would give other tokens: {self.agreement:.0%} of the weight is found again in a "
                "resample of the prompts"
            )
        return doubts

    def require_refusals(self) -> None:
        """Refuses tokens that were found in the answers of a model that hardly refuses.

        Raises:
            PactError: fewer than `LEAST_REFUSALS` of its answers to harmful prompts decline.
        """
        share = self.stability.refusals if self.stability else None
        if share is not None and share < LEAST_REFUSALS:
            raise PactError(
                expected=f"a model that declines at least {LEAST_REFUSALS:.0%} of the harmful prompts",
                got=f"{share:.0%}: its tokens would be {', '.join(map(repr, self.texts[:5]))}, ...",
                consequence="There is nothing to preserve: the safety term would constrain words of other answers.",
                remedy="Fine-tune a model that was aligned, or switch PACT off (`pact: false`). If the model does "
                "refuse, but not in English or not these prompts, give prompts of your own (`pact.prompts`), or name "
                "the tokens: `pact.safety_tokens` takes a list, or the file that `pact tokens` writes.",
            )

    def changed(self, add: Sequence[int | str], exclude: Sequence[int | str], tokenizer: Any) -> SafetyTokens:
        """With the tokens of `add`, each with the mean of the positive weights, and without those of `exclude`.

        Raises:
            PactError: an entry is no token of the tokenizer, stands in both, or nothing is left to hold.
        """
        if not add and not exclude:
            return self
        added, excluded = (dict.fromkeys(_ids(tokens, tokenizer)) for tokens in (add, exclude))
        if both := added.keys() & excluded.keys():
            raise PactError(
                expected="tokens that are either added or excluded",
                got=f"{', '.join(repr(tokenizer.decode([i])) for i in both)} in both lists",
                consequence="It would not be known whether to hold them.",
                remedy="Take them out of one.",
            )
        mean = sum(self.weights) / len(self.positive)
        weights = {i: w for i, w in zip(self.ids, self.weights, strict=True) if i not in excluded}
        weights |= {i: weights.get(i) or mean for i in added}
        weights = dict(sorted(weights.items(), key=lambda item: -item[1]))
        if not any(weights.values()):
            raise PactError(
                expected="something to hold",
                got="nothing: `safety_tokens_exclude` names every safety token",
                consequence="The safety loss would vanish.",
                remedy="Exclude fewer tokens, or train without PACT (`pact: false`).",
            )
        provenance = {**self.provenance, "added": list(added), "excluded": list(excluded)}
        changed = self.build(list(weights), list(weights.values()), tokenizer, provenance)
        return replace(changed, stability=self.stability and _of(self.stability, self.ids, changed.ids))

    @classmethod
    def of_list(cls, tokens: Sequence[int | str], tokenizer: Any) -> SafetyTokens:
        """A user's own list: ids, or texts that are one token each; all have weight 1. Special tokens may be named."""
        ids = list(dict.fromkeys(_ids(tokens, tokenizer)))
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
        files.write(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> SafetyTokens:
        """Reads a file written by `save`.

        Raises:
            PactError: no such file, not this format, or its content does not match its checksum.
        """
        try:
            content = files.read(path)
            version = content.pop("format")
            if version == FORMAT:
                return _STORED.validate_json(json.dumps(content))  # as JSON, whose lists may stand for tuples
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


_STORED = TypeAdapter(SafetyTokens)


def _ids(tokens: Sequence[int | str], tokenizer: Any) -> list[int]:
    """The id of each entry, which is an id or a text that is one token."""
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
    return ids


def _of(stability: Stability, known: Sequence[int], ids: Sequence[int]) -> Stability:
    """The stability of `ids`: what is known of each; a token that was added is held whatever the prompts."""
    place = {token: i for i, token in enumerate(known)}

    def taken(values: Sequence[Any], otherwise: Any) -> tuple[Any, ...]:
        return tuple(values[place[token]] if token in place else otherwise for token in ids)

    return replace(
        stability,
        held=taken(stability.held, 1.0),
        low=taken(stability.low, 0.0),
        high=taken(stability.high, 0.0),
        examples=taken(stability.examples, ""),
    )


def _unsound(expected: str, got: str) -> PactError:
    return PactError(
        expected=expected,
        got=got,
        consequence="PACT would hold arbitrary tokens.",
        remedy="Make the safety tokens again with `pact tokens`.",
    )
