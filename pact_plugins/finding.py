"""Safety tokens and anchors of a model: named by the config, found by an earlier run, or found now.

What is found is kept beside the reference caches, under the fingerprints of the model and its tokenizer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pact_plugins import anchors, artefacts, discovery, own_answers
from pact_plugins.answers import Document
from pact_plugins.config import PactConfig
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest, tokenizer_fingerprint
from pact_plugins.loading import ACCESS, pretrained
from pact_plugins.own_answers import Prompts
from pact_plugins.ranks import ALONE, Ranks
from pact_plugins.safety_tokens import SafetyTokens

_VERSION = 2
"""Of the kept files."""

_NAME = "kept_as"
"""Where the provenance of tokens that were found says for which model, template and settings."""


def known_tokens(config: PactConfig, tokenizer: Any, model_identity: str) -> SafetyTokens | None:
    """The safety tokens that the config names, or that were found before; None if they have yet to be found."""
    if isinstance(config.safety_tokens, Path):
        return _changed(SafetyTokens.load(config.safety_tokens), config, tokenizer)
    if isinstance(config.safety_tokens, list):
        return _changed(SafetyTokens.of_list(config.safety_tokens, tokenizer), config, tokenizer)
    stored = _tokens_file(config, tokenizer, model_identity)
    return _changed(_load(stored), config, tokenizer) if stored.exists() else None


def _changed(tokens: SafetyTokens, config: PactConfig, tokenizer: Any) -> SafetyTokens:
    return tokens.changed(config.safety_tokens_add, config.safety_tokens_exclude, tokenizer)


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


def _tokens_file(config: PactConfig, tokenizer: Any, model_identity: str) -> Path:
    prompts = Prompts.of(config.prompts)
    template = getattr(tokenizer, "chat_template", None)
    how = [
        _VERSION,
        model_identity,
        tokenizer_fingerprint(tokenizer),
        template,
        config.base_model,
        config.top_k,
        [discovery.VERSION, prompts.harmful, prompts.harmless, own_answers.shipped("refusals")],
    ]
    return config.cache_folder / f"tokens-{digest(how)}.json"


def find_tokens(
    config: PactConfig,
    model: nn.Module,
    tokenizer: Any,
    model_identity: str,
    show_progress: bool = True,
    ranks: Ranks = ALONE,
) -> SafetyTokens:
    """The safety tokens that the config names, or finds; found ones are kept beside the reference caches.

    Those of the first rank, in every rank.
    """
    what = "finding the safety tokens"
    if (known := ranks.first(lambda: known_tokens(config, tokenizer, model_identity), what)) is not None:
        return known
    stored = _tokens_file(config, tokenizer, model_identity)
    with artefacts.locked(stored, what, ranks, holds=ranks.is_first):
        if not ranks.first(stored.exists, what):
            # In every rank, for engines whose forward passes need all of them.
            tokens = _discover(config, model, tokenizer, show_progress)
            if ranks.is_first:
                with artefacts.storing(stored.parent):
                    replace(tokens, provenance={**tokens.provenance, _NAME: stored.stem}).save(stored)
        return ranks.first(lambda: _changed(_load(stored), config, tokenizer), what)


def _discover(config: PactConfig, model: nn.Module, tokenizer: Any, show_progress: bool) -> SafetyTokens:
    how: dict[str, Any] = {"top_k": config.top_k, "show_progress": show_progress}
    if config.base_model is None:
        return discovery.discover(model, tokenizer, Prompts.of(config.prompts), **how)
    base = load_base(config.base_model, next(model.parameters()).device)
    return discovery.discover_against_base(model, base, tokenizer, Prompts.of(config.prompts), **how)


def find_anchors(
    config: PactConfig,
    model: nn.Module,
    tokenizer: Any,
    name: str | None,
    *,
    resumed: bool,
    show_progress: bool,
    ranks: Ranks = ALONE,
) -> list[Document]:
    """The anchors that are kept as `name`, harmful and harmless in turn, written now or found; none if they are off.

    Those of the first rank, in every rank. Trained weights write none.
    """
    if name is None or not config.anchors_per_step:
        return []
    stored = config.cache_folder / name
    what = "writing the anchors"
    if not resumed and not ranks.first(stored.exists, what):
        with artefacts.locked(stored, what, ranks, holds=ranks.is_first):
            if not ranks.first(stored.exists, what):
                chats = _anchor_chats(config, tokenizer)
                answers = own_answers.write_answers(model, tokenizer, chats, what, show_progress=show_progress)
                if ranks.is_first:
                    with artefacts.storing(stored.parent):
                        anchors.save(answers, stored)
    return ranks.first(lambda: anchors.load(stored), what)


def expected_anchors(config: PactConfig, tokenizer: Any, model_identity: str) -> tuple[list[Document], bool]:
    """The anchors of this model and True, or stand-ins and False if they have yet to be written.

    Stand-ins have the real prompts, and answers of the greatest length.
    """
    if (name := anchors_name(config, tokenizer, model_identity)) is None:
        return [], True
    stored = config.cache_folder / name
    if stored.exists():
        return anchors.load(stored), True
    chats = _anchor_chats(config, tokenizer)
    # Equal answers would be computed once: each has a token of its own.
    return [
        own_answers.answered(chat, [i % len(tokenizer)] * own_answers.MAX_ANSWER_TOKENS) for i, chat in enumerate(chats)
    ], False


def _anchor_chats(config: PactConfig, tokenizer: Any) -> list[list[int]]:
    asked = Prompts.of(config.prompts)
    prompts = [prompt for pair in zip(asked.harmful, asked.harmless, strict=True) for prompt in pair]
    return own_answers.as_chats(tokenizer, prompts, "render the prompts of the anchors")


def anchors_name(config: PactConfig, tokenizer: Any, model_identity: str) -> str | None:
    """Name of the file of this model's anchors, by the text of its template, which may write the date; None if off."""
    if not config.anchors_per_step:
        return None
    prompts = Prompts.of(config.prompts)
    template = getattr(tokenizer, "chat_template", None)
    how = [_VERSION, model_identity, tokenizer_fingerprint(tokenizer), template, prompts.harmful, prompts.harmless]
    return f"anchors-{digest(how)}.json"


def load_base(name: str, device: Any) -> nn.Module:
    """The base model, for the time of the contrast; in the precision it was saved in, like the model of most runs."""
    from transformers import AutoModelForCausalLM

    return pretrained(
        AutoModelForCausalLM,
        name,
        expected=f"`pact.base_model` to be a causal language model, on disk or on the hub, under `{name}`",
        consequence="The safety tokens could not be found.",
        remedy=f"{ACCESS} Or leave `base_model` out to find the tokens without one.",
        dtype="auto",
    ).to(device)
