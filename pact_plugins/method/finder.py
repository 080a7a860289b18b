"""Safety tokens and anchors of a model: named by the config, found by an earlier run, or found now.

What is found is kept beside the reference caches, under the fingerprints of the model and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pact_plugins.chat.answers import Document
from pact_plugins.chat.fingerprints import digest, tokenizer_fingerprint
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.method import asking, discovery, prompting
from pact_plugins.method.anchors import Anchors
from pact_plugins.method.asking import Asked
from pact_plugins.method.prompting import Prompts
from pact_plugins.method.safety_tokens import SafetyTokens
from pact_plugins.model.forward import precision
from pact_plugins.model.loading import ACCESS, LanguageModel, pretrained
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.storage import files

T = TypeVar("T")

_VERSION = 3
"""Of the kept tokens."""

_TOKENS = "finding the safety tokens"

_NAME = "kept_as"
"""Where the provenance of tokens that were found says for which model, template and settings."""


class Finder:
    """What a run finds out about its model before the first step; to be used in the trainer's autocast context.

    Args:
        model: as it is before its first step.
        ranks: of the run: all get what the first one finds.
    """

    def __init__(
        self, config: PactConfig, model: nn.Module, tokenizer: Any, model_identity: str, *, ranks: Ranks = ALONE
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self._model_identity, self._ranks = model_identity, ranks

    def known_tokens(self) -> SafetyTokens | None:
        """The safety tokens that the config names, or that were found before; None if they have yet to be found."""
        return self._ranks.first(self._known_tokens, _TOKENS)

    def _known_tokens(self) -> SafetyTokens | None:
        named = self.config.safety_tokens
        if isinstance(named, Path):
            return self._changed(SafetyTokens.load(named))
        if isinstance(named, list):
            return self._changed(SafetyTokens.of_list(named, self.tokenizer))
        return self._changed(_load(self._tokens_file)) if self._tokens_file.exists() else None

    def tokens(self) -> SafetyTokens:
        """The safety tokens that the config names, or finds; found ones are kept beside the reference caches."""
        if (known := self.known_tokens()) is not None:
            return known
        stored = self._tokens_file

        def save(tokens: SafetyTokens) -> None:
            replace(tokens, provenance={**tokens.provenance, _NAME: stored.stem}).save(stored)

        self._make(stored, _TOKENS, self._discover, save)
        return self._ranks.first(lambda: self._changed(_load(stored)), _TOKENS)

    def _make(self, stored: Path, what: str, make: Callable[[], T], save: Callable[[T], None]) -> None:
        """Makes a file that is not there, in one run at a time: made in every rank, and saved by the first."""
        ranks = self._ranks
        if ranks.first(stored.exists, what):
            return
        with files.locked(stored, what, ranks, holds=ranks.is_first):
            if not ranks.first(stored.exists, what):
                made = make()  # engines may need all ranks for a forward pass
                if ranks.is_first:
                    with files.storing(stored.parent):
                        save(made)

    def anchors(self, resumed_with: str | None = None) -> Anchors | None:
        """The anchors of this model, harmful and harmless in turn; None if they are off.

        Args:
            resumed_with: name of the file of a run that is being resumed, whose trained weights are not asked.
        """
        if not self.config.anchors_per_step:
            return None
        if resumed_with is not None:
            stored = self.config.cache_folder / resumed_with
            asked = self._ranks.first(lambda: Asked.load(stored), asking.WHAT)
        else:
            asked = self.answers
        return Anchors.of(asked, self.config.anchors_per_step)

    def expected_anchors(self) -> tuple[list[Document], bool]:
        """The anchors of this model and True, or stand-ins and False if they have yet to be written.

        Stand-ins have the real prompts, all of them, and answers of the greatest length.
        """
        if not self.config.anchors_per_step:
            return [], True
        if self.answers_file.exists():
            return Asked.load(self.answers_file).documents, True
        return [prompting.answered(chat, [0] * prompting.MAX_ANSWER_TOKENS) for chat in self._chats], False

    @cached_property
    def answers(self) -> Asked:
        """The model's own answers, given now or found."""
        stored, ranks = self.answers_file, self._ranks
        self._make(
            stored,
            asking.WHAT,
            lambda: asking.ask(self.model, self.tokenizer, self._chats, ranks=ranks),
            lambda given: given.save(stored),
        )
        return ranks.first(lambda: Asked.load(stored), asking.WHAT)

    @cached_property
    def answers_file(self) -> Path:
        """Where the answers are kept: named by all that they depend on, but for a date that the template writes."""
        prompts = Prompts.of(self.config.prompts)
        how = [
            asking.VERSION,
            self._model_identity,
            tokenizer_fingerprint(self.tokenizer),
            getattr(self.tokenizer, "chat_template", None),
            prompts.in_turn,
            prompting.MAX_ANSWER_TOKENS,
            precision(self.model),
        ]
        return self.config.cache_folder / f"answers-{digest(how)}.safetensors"

    @cached_property
    def _chats(self) -> list[list[int]]:
        prompts = Prompts.of(self.config.prompts).in_turn
        return prompting.as_chats(self.tokenizer, prompts, "render the prompts that find tokens and anchors")

    @cached_property
    def _tokens_file(self) -> Path:
        config = self.config
        how = [_VERSION, discovery.VERSION, self.answers_file.name, config.base_model, config.top_k]
        return config.cache_folder / f"tokens-{digest([*how, prompting.shipped('refusals')])}.json"

    def _discover(self) -> SafetyTokens:
        config, model = self.config, self.model
        if config.base_model is None:
            harmful, name = Prompts.of(config.prompts).harmful, discovery.name_of(model)
            return discovery.in_answers(self.answers, harmful, self.tokenizer, name, top_k=config.top_k)
        base = load_base(config.base_model, next(model.parameters()).device)
        return discovery.discover_against_base(
            model, base, self.tokenizer, Prompts.of(config.prompts), top_k=config.top_k, ranks=self._ranks
        )

    def _changed(self, tokens: SafetyTokens) -> SafetyTokens:
        return tokens.changed(self.config.safety_tokens_add, self.config.safety_tokens_exclude, self.tokenizer)


def _load(stored: Path) -> SafetyTokens:
    tokens = SafetyTokens.load(stored)
    if (name := tokens.provenance.get(_NAME)) != stored.stem:
        raise PactError(
            expected=f"the safety tokens that were kept as {stored.stem}, in {stored}",
            got=f"those that were kept as {name}",
            consequence="PACT would hold the tokens of another model, chat template or choice of settings.",
            remedy=f"Remove {stored}; the next run finds the tokens again.",
        )
    return tokens


def load_base(name: str, device: torch.device) -> nn.Module:
    """The base model, for the time of the contrast; in the precision it was saved in, like the model of most runs."""
    return pretrained(
        LanguageModel,
        name,
        expected=f"`pact.base_model` to be a causal language model, on disk or on the hub, under `{name}`",
        consequence="The safety tokens could not be found.",
        remedy=f"{ACCESS} Or leave `base_model` out to find the tokens without one.",
        dtype="auto",
    ).to(device)
