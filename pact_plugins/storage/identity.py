"""`Identity`: what the reference of a row depends on beside the row itself."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from pact_plugins.chat.fingerprints import digest

FORMAT = 5
"""Of a cache's files and of what computes them: part of every identity, so that another format is another cache."""


class Identity(BaseModel):
    """What the values of a row were computed with; two rows of equal content and identity have the same reference.

    A run has all of it, and two stores of values. That of log-probabilities does not depend on how harm is told, that
    of harm not on the safety tokens and the gate: what a store does not depend on is None in its identity.

    Attributes:
        model: fingerprint of the model before its first step.
        tokenizer: of its tokenizer's vocabulary.
        safety_tokens: of the safety tokens' ids, in their order.
        reach: for how many tokens of each answer there is a reference without the prompt; None without the gate.
        harm: of the probe that tells harmful prompts (`harm_probe.identity`); None where nothing is damped.
        chat: of what the chat template puts around turns, and of what the gate keeps before an answer.
        precision: what the forward passes compute in (`forward.precision`).
        format: of the files.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model: str
    tokenizer: str
    safety_tokens: str | None
    reach: NonNegativeInt | None
    harm: str | None
    chat: str
    precision: str
    format: int = FORMAT

    @property
    def stores(self) -> tuple[Identity, ...]:
        """The identities of the stores that a run's values are in."""
        values = self.model_copy(update={"harm": None})
        harm = self.model_copy(update={"safety_tokens": None, "reach": None})
        return (values,) if self.harm is None else (values, harm)

    @property
    def views(self) -> tuple[str, ...]:
        """What a store of this identity holds of each row."""
        if self.safety_tokens is None:
            return ("harm",)
        return ("full",) if self.reach is None else ("full", "answer_only")

    @property
    def name(self) -> str:
        """Of the store's folder."""
        return digest(self.model_dump())

    def differences(self, other: Identity) -> list[str]:
        """The entries in which the two differ."""
        mine, others = self.model_dump(), other.model_dump()
        return [name for name in mine if mine[name] != others[name]]

    def words(self, entries: Iterable[str]) -> str:
        """Some entries, for an error."""
        return "; ".join(f"{name} = {getattr(self, name)}" for name in entries)
