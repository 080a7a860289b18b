"""`RunNotes`: which reference and which safety tokens a run uses, in its output folder, for resuming and reporting it.

`pact_run.json` and `pact_safety_tokens.json`; when training ends, `pact_history.json` with what was logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pact_plugins import artefacts
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest
from pact_plugins.reference import ReferenceCache
from pact_plugins.safety_tokens import SafetyTokens

NOTES, TOKENS, HISTORY = "pact_run.json", "pact_safety_tokens.json", "pact_history.json"


def tokens_source(config: PactConfig) -> dict[str, Any]:
    """The settings that choose the safety tokens."""
    return config.model_dump(mode="json", include={"safety_tokens", "base_model", "top_k"})


@dataclass(frozen=True)
class RunNotes:
    """What a run was held to.

    Attributes:
        identity: what its reference cache was made for.
        tokens_source: the settings that chose its safety tokens.
        tokens: the safety tokens.
        about: settings, versions, amounts of data and the like, for people; resuming compares none of it.
    """

    identity: dict[str, Any]
    tokens_source: dict[str, Any]
    tokens: SafetyTokens
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        self.tokens.save(folder / TOKENS)
        notes = {"identity": self.identity, "tokens_source": self.tokens_source, "about": self.about}
        artefacts.write(folder / NOTES, notes)

    @classmethod
    def read(cls, folder: Path) -> RunNotes:
        """What `save` wrote.

        Raises:
            OSError, ValueError, KeyError: the notes are not there, or damaged.
            PactError: the safety tokens are.
        """
        notes = artefacts.read(folder / NOTES)
        tokens = SafetyTokens.load(folder / TOKENS)
        return cls(notes["identity"], notes["tokens_source"], tokens, notes.get("about", {}))

    @classmethod
    def load(cls, folder: Path) -> RunNotes:
        """The notes of a run that is being resumed.

        Raises:
            PactError: they are not there, or damaged.
        """
        try:
            return cls.read(folder)
        except (OSError, ValueError, KeyError) as error:
            raise PactError(
                expected=f"the notes of the run being resumed, {folder / NOTES}",
                got=f"{type(error).__name__}: {error}",
                consequence="The weights of the checkpoint are already fine-tuned: they are no reference.",
                remedy="Resume in the output folder of a run that had PACT on, or start from the original model.",
            ) from error

    @staticmethod
    def save_history(log: Sequence[dict[str, Any]], folder: Path) -> None:
        """Writes what the trainer logged, entry by entry; of a resumed run from its first step."""
        artefacts.write(folder / HISTORY, {"log": list(log)})

    def cache(self, config: PactConfig, identity: dict[str, Any]) -> ReferenceCache:
        """The reference that the run began with.

        Raises:
            PactError: the run is resumed with other data, template, gate, anchors or choice of tokens, or its cache is
                gone. Its model is taken from its notes: the weights have been trained since.
        """
        now, then = {**identity, **tokens_source(config)}, {**self.identity, **self.tokens_source}
        differing = [k for k in now if now[k] != then.get(k)]
        if differing:
            raise PactError(
                expected="; ".join(f"{k} = {then.get(k)}" for k in differing) + ", as in the run being resumed",
                got="; ".join(f"{k} = {now[k]}" for k in differing),
                consequence="The reference of that run does not cover this one.",
                remedy="Resume with the run's own data, tokenizer and `pact:` block.",
            )
        stored = config.cache_folder / digest(identity)
        if not stored.exists():
            raise PactError(
                expected=f"the reference cache of the run being resumed, {stored}",
                got="no such folder",
                consequence="The weights of the checkpoint are already fine-tuned: they are no reference.",
                remedy="Point `pact.cache_dir` to where the run began, or start from the original model.",
            )
        return ReferenceCache(stored, identity)
