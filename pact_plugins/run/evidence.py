"""`Evidence`: what a run was held to, and how far; a file in its output folder, for resuming, reporting and verifying.

`pact_evidence.json` and `pact_safety_tokens.json`; when training ends, `pact_history.json` with what was logged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pact_plugins.chat.fingerprints import digest, keys_fingerprint
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method.prompting import Prompts
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.storage import files
from pact_plugins.storage.cache import ReferenceCache
from pact_plugins.storage.identity import Identity

EVIDENCE, TOKENS, HISTORY = "pact_evidence.json", "pact_safety_tokens.json", "pact_history.json"

FORMAT = 1
"""Of the evidence; that of another version of this package may not be understood here."""

FINAL = "final"
"""Where evidence keeps which weights a run ended with."""

_DATED = (
    " The chat template writes the date into each row: put the day on which that run began, {began}, in place of its "
    "`strftime_now(...)`."
)

StartedFrom = Literal["reference", "checkpoint", "trained"]
"""The weights that a call of `train()` began with: untouched, of a checkpoint, or trained by a call before it."""

Ended = Literal["running", "restarted", "finished", "stopped early", "failed"]


@dataclass(frozen=True)
class Part:
    """One call of `train()`, as far as it came. Counts are sums over all processes.

    Attributes:
        started_from: the weights that it began with.
        first_step: optimiser steps that lie before it.
        last_step: the last optimiser step that is recorded; every one since `first_step` ran under PACT.
        planned_steps: at which step the run will have ended.
        ended: how it ended; `running` until it does, and for ever if the process was killed.
        error: what stopped it, if that was PACT.
        micro_batches: forward passes of training.
        supervised_tokens: tokens seen that count in the host's cross-entropy.
        answer_tokens: those of them that were constrained: in an assistant's turn.
        cache_hits: sequences whose reference was looked up.
        cache_misses: sequences that had none; the first stops the run.
        anchor_tokens: answer tokens of anchors that were constrained.
        loss_at_start, loss_at_end: the first and the last log entry with PACT's metrics.
    """

    started_from: StartedFrom
    first_step: int
    last_step: int
    planned_steps: int
    ended: Ended = "running"
    error: str | None = None
    micro_batches: int = 0
    supervised_tokens: int = 0
    answer_tokens: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    anchor_tokens: int = 0
    loss_at_start: Mapping[str, float] = field(default_factory=dict[str, float])
    loss_at_end: Mapping[str, float] = field(default_factory=dict[str, float])


def tokens_source(config: PactConfig) -> dict[str, Any]:
    """The settings that choose the safety tokens; of files the content, since a path may lead elsewhere by then."""
    names = {"safety_tokens", "safety_tokens_add", "safety_tokens_exclude", "base_model", "top_k"}
    source = config.model_dump(mode="json", include=names)
    if isinstance(config.safety_tokens, Path):
        source["safety_tokens"] = SafetyTokens.load(config.safety_tokens).fingerprint
    prompts = Prompts.of(config.prompts)
    return {**source, "prompts": digest([prompts.harmful, prompts.harmless])}


@dataclass(frozen=True)
class Evidence:
    """What a run was held to, and how far.

    Attributes:
        identity: what its reference was computed with.
        data: fingerprint of its rows with an answer (`keys_fingerprint`), or of the first ones of a stream; of none
            where anchors alone were held.
        values: fingerprints of their reference, to the last bit (`ReferenceCache.fingerprint`): one, or several where
            processes have disks of their own, which may have grown in other steps; none where the data set streams.
        tokens_source: the settings that chose its safety tokens.
        tokens: the safety tokens.
        about: settings, versions, amounts of data and the like, for people; resuming compares none of it.
        parts: its calls of `train()`, in order.
        trained_model: fingerprint of the model after its last step, once there is one.
        weights: fingerprints of the weights, in each precision that they may be saved in (`weights.fingerprints`): of
            each checkpoint by the name of its folder, and of what the run ended with under `FINAL`.
        anchors: name of the file of its anchors in the folder of caches; None if they are off.
    """

    identity: Identity
    data: str
    values: tuple[str, ...]
    tokens_source: dict[str, Any]
    tokens: SafetyTokens
    about: dict[str, Any] = field(default_factory=dict[str, Any])
    parts: tuple[Part, ...] = ()
    trained_model: str | None = None
    weights: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    anchors: str | None = None

    @property
    def covered(self) -> int:
        """The optimiser step up to which, from the first, every one is known to have run under PACT.

        A part that begins beyond what lies before it, and all after it, do not count.
        """
        covered = 0
        for part in self.parts:
            if part.first_step > covered:
                break
            covered = part.last_step
        return covered

    def with_last(self, part: Part) -> Evidence:
        """The same with `part` in place of its last one."""
        return replace(self, parts=(*self.parts[:-1], part))

    def save(self, folder: Path) -> None:
        """Writes it into the output folder, and the safety tokens beside it."""
        self.tokens.save(folder / TOKENS)
        content = {
            **vars(self),
            "pact": True,
            "format": FORMAT,
            "identity": self.identity.model_dump(),
            "tokens": self.tokens.fingerprint,
            "parts": [asdict(part) for part in self.parts],
        }
        files.write(folder / EVIDENCE, content)

    @classmethod
    def read(cls, folder: Path) -> Evidence:
        """What `save` wrote.

        Raises:
            OSError, ValueError, KeyError, TypeError: the evidence is not there, or damaged.
            PactError: the safety tokens are; PACT was switched off; or another version wrote it.
        """
        content = files.read(folder / EVIDENCE)
        if not content.pop("pact"):
            raise PactError(
                expected=f"a run under PACT in {folder}",
                got="one that had `pact: false`",
                consequence="Nothing held the model's refusals.",
                remedy="Train with `pact: true`, from the original model.",
            )
        if (version := content.pop("format", None)) != FORMAT:
            raise PactError(
                expected=f"evidence of the run being resumed or verified in format {FORMAT}, in {folder / EVIDENCE}",
                got=f"evidence in format {version}, of another version of pact-plugins",
                consequence="It could not be told what the run was held to.",
                remedy="Use the version that wrote it: the evidence names it under `about.versions`.",
            )
        tokens = SafetyTokens.load(folder / TOKENS)
        if content.pop("tokens") != tokens.fingerprint:
            raise ValueError(f"{folder / TOKENS} holds other safety tokens than those of the run")
        parts = tuple(Part(**part) for part in content.pop("parts"))
        identity, values = Identity.model_validate(content.pop("identity")), tuple(content.pop("values"))
        return cls(**content, identity=identity, values=values, tokens=tokens, parts=parts)

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """The evidence of a run that is being resumed.

        Raises:
            PactError: it is not there, or damaged.
        """
        try:
            return cls.read(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PactError(
                expected=f"the evidence of the run being resumed, {folder / EVIDENCE}",
                got=f"{type(error).__name__}: {error}",
                consequence="The weights of the checkpoint are already fine-tuned: they are no reference.",
                remedy="Resume with the output folder of the run that had PACT on, where its checkpoints are, or start "
                "from the original model.",
            ) from error

    @staticmethod
    def save_off(folder: Path) -> None:
        """Writes that the run in `folder` trains without PACT, as its settings ask for (`pact: false`)."""
        files.write(folder / EVIDENCE, {"pact": False})

    @staticmethod
    def save_history(log: Sequence[dict[str, Any]], folder: Path) -> None:
        """Writes what the trainer logged, entry by entry; of a resumed run from its first step."""
        files.write(folder / HISTORY, {"log": list(log)})

    @property
    def holds_rows(self) -> bool:
        """Whether answers of its data set were held, or anchors alone."""
        return self.data != keys_fingerprint(())

    def held(self, part: Part) -> int:
        """Answer tokens that a part constrained: of rows, or of anchors where these are held alone."""
        return part.answer_tokens if self.holds_rows else part.anchor_tokens

    @property
    def streams(self) -> bool:
        """Whether its data set streams, so that its reference is the model with its adapter taken off."""
        return not self.values

    def check_same(
        self, config: PactConfig, identity: Identity, data: str | None = None, *, dated: bool = False
    ) -> None:
        """Refuses another run than this one under its name.

        Args:
            config: the settings of the run that resumes it.
            identity: what that run's reference would be computed with.
            data: fingerprint of its rows with an answer; where they are not known, they are not compared.
            dated: whether its chat template writes the date, so that rows may differ in it alone.

        Raises:
            PactError: the run is resumed with other data, template, gate, anchors or choice of tokens, or if its data
                set streams with another model below its adapter.
        """
        now = {"data": data or self.data, **identity.model_dump(), **tokens_source(config)}
        then = {"data": self.data, **self.identity.model_dump(), **self.tokens_source}
        now["anchors"], then["anchors"] = bool(config.anchors_per_step), self.anchors is not None
        differing = [k for k in now if now[k] != then.get(k)]
        if differing:
            raise PactError(
                expected="; ".join(f"{k} = {then.get(k)}" for k in differing) + ", as in the run being resumed",
                got="; ".join(f"{k} = {now[k]}" for k in differing),
                consequence="The reference of that run does not cover this one.",
                remedy="Resume with the run's own data, tokenizer and `pact:` block."
                + _DATED.format(began=self.about.get("began") or "that day") * (dated and "data" in differing),
            )

    def cache(
        self, config: PactConfig, identity: Identity, data: str | None = None, *, dated: bool = False
    ) -> ReferenceCache:
        """The reference of the run, whose values have yet to be compared; arguments as of `check_same`.

        Raises:
            PactError: it is another run, or its reference is gone.
        """
        self.check_same(config, identity, data, dated=dated)
        cache = ReferenceCache(config.cache_folder, identity)
        if self.holds_rows and (empty := [store for store in cache.stores if not store.segments]):
            raise PactError(
                expected=f"the reference cache of the run being resumed, {empty[0].folder}",
                got="no such folder",
                consequence="The weights of the checkpoint are already fine-tuned: they are no reference.",
                remedy="Point `pact.cache_dir` to where the run began, or start from the original model.",
            )
        return cache

    def check_values(self, found: str, cache: ReferenceCache) -> None:
        """Refuses another reference than the one that the run began with, to the last bit.

        Args:
            found: fingerprint of the values of its rows, in `cache`.

        Raises:
            PactError: it is another.
        """
        if found not in self.values:
            raise PactError(
                expected=f"in {cache.folder} the values that the run being resumed began with, "
                f"{', '.join(self.values)}",
                got=f"others, {found}: they were removed, and computed again beside other rows",
                consequence="The run would go on against a reference that differs in its last bits.",
                remedy="Start from the original model, or put the folder back from a copy.",
            )
