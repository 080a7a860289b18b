"""What happens before the first step: safety tokens, parity check, reference cache, and a table of what was decided."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from pact_plugins import anchors, artefacts, discovery, own_answers
from pact_plugins.anchors import Anchors
from pact_plugins.answers import Document
from pact_plugins.building import open_or_build
from pact_plugins.chat_format import ChatFormat
from pact_plugins.config import PactConfig
from pact_plugins.cost import Data, Overhead, count_answer_tokens
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import digest, keys_fingerprint, model_fingerprint, tokenizer_fingerprint
from pact_plugins.objective import PactObjective
from pact_plugins.reference import FORMAT, ReferenceCache
from pact_plugins.safety_tokens import SafetyTokens
from pact_plugins.subset_head import SubsetHead


@dataclass(frozen=True)
class Preparation:
    """A prepared objective and what preparing it took.

    Attributes:
        objective: ready for training.
        identity: what the reference cache was made for.
        built: whether the cache was built now rather than found.
        data: how much there is to constrain. Sequences without an answer token (cut off before it) train without PACT.
    """

    objective: PactObjective
    identity: dict[str, Any]
    built: bool
    data: Data


def prepare(
    model: nn.Module,
    tokenizer: Any,
    documents: Sequence[Document],
    config: PactConfig,
    *,
    resumed_from: Path | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    show_progress: bool = True,
) -> Preparation:
    """Readies PACT for `model` as it is now, which becomes the reference.

    Args:
        model: the model before its first step, adapter included; unwrapped of any engine.
        tokenizer: its tokenizer, with the chat template that the data was rendered with.
        documents: all training sequences.
        config: the run's settings.
        resumed_from: folder of a run that is being continued. Its weights are no reference any more: the cache and the
            tokens of that run are used, and nothing is computed from the model.
        autocast: makes the context in which the trainer runs its forward passes.
        show_progress: whether to draw progress bars.

    Raises:
        PactError: the model, tokenizer, tokens, data or cache cannot be served.
    """
    chat = ChatFormat.from_tokenizer(tokenizer)
    answered, data = find_answers(documents, chat, config)
    run = _RunFile.load(resumed_from) if resumed_from else None
    with autocast():
        fingerprint = run.identity["model"] if run else model_fingerprint(model)
        tokens = run.tokens if run else find_tokens(config, model, tokenizer, fingerprint, show_progress)
        head = SubsetHead(model, list(tokens.ids))
        tokens.check(tokenizer, head.base.get_output_embeddings().weight.shape[0])
        head.check_parity()
        anchor_rows = find_anchors(
            config, model, tokenizer, fingerprint, resumed=run is not None, show_progress=show_progress
        )
        referenced = [*answered, *anchor_rows]
        identity = cache_identity(config, model, fingerprint, tokenizer, tokens, chat, referenced)
        if run:
            cache, built = run.cache(config, identity), False
        else:
            cache, built = open_or_build(
                cache_folder(config), identity, referenced, head, chat, show_progress=show_progress
            )
    objective = PactObjective(
        config, tokens, chat, head, cache, Anchors(anchor_rows, config.anchors_per_step) if anchor_rows else None
    )
    return Preparation(objective, identity, built, data)


def find_answers(documents: Sequence[Document], chat: ChatFormat, config: PactConfig) -> tuple[list[Document], Data]:
    """The documents that have an answer token, and how much all of them hold.

    Raises:
        PactError: there is no answer token, or the chat template has no header that the settings need.
    """
    if config.active_gate is not None:
        chat.require_header("build the reference without the prompt, which the gate needs (`pact.gate`)")
    counts = [count_answer_tokens(d, chat) for d in documents]
    answered = [d for d, count in zip(documents, counts, strict=True) if count]
    if not answered:
        raise PactError(
            expected="a training set with at least one answer token: supervised, and in an assistant turn",
            got=f"none in {len(documents):,} supervised sequences",
            consequence="The run would train without PACT, or train on nothing.",
            remedy="Check the chat template, and that `max_length`/`sequence_len` does not cut the answers off.",
        )
    return answered, Data.of(documents, counts)


def cache_identity(
    config: PactConfig,
    model: nn.Module,
    model_identity: str,
    tokenizer: Any,
    tokens: SafetyTokens,
    chat: ChatFormat,
    documents: Sequence[Document],
) -> dict[str, Any]:
    """What a reference cache must have been made for; to be called in the trainer's autocast context."""
    return {
        "format": FORMAT,
        "model": model_identity,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "safety_tokens": digest(tokens.ids),
        "views": views(config),
        "reach": config.gate_reach,
        "header": list(chat.header),
        "end": chat.end,
        "precision": _autocast_dtype(model),
        "data": keys_fingerprint(d.key for d in documents),
    }


def views(config: PactConfig) -> list[str]:
    """What the cache holds of each answer token: the reference with its full context, and without the prompt."""
    return ["full"] if config.active_gate is None else ["full", "answer_only"]


def known_tokens(config: PactConfig, tokenizer: Any, model_identity: str) -> SafetyTokens | None:
    """The safety tokens that the config names, or that were found before; None if they have yet to be found."""
    if isinstance(config.safety_tokens, Path):
        return SafetyTokens.load(config.safety_tokens)
    if isinstance(config.safety_tokens, list):
        return SafetyTokens.of_list(config.safety_tokens, tokenizer)
    stored = _tokens_file(config, tokenizer, model_identity)
    return SafetyTokens.load(stored) if stored.exists() else None


def _tokens_file(config: PactConfig, tokenizer: Any, model_identity: str) -> Path:
    prompts = digest([discovery.VERSION, *map(own_answers.shipped, ("harmful", "harmless", "refusals"))])
    template = getattr(tokenizer, "chat_template", None)
    how = [model_identity, tokenizer_fingerprint(tokenizer), template, config.base_model, config.top_k, prompts]
    return cache_folder(config) / f"tokens-{digest(how)}.json"


def find_tokens(
    config: PactConfig, model: nn.Module, tokenizer: Any, model_identity: str, show_progress: bool = True
) -> SafetyTokens:
    """The safety tokens that the config names, or finds; found ones are kept beside the reference caches."""
    if (known := known_tokens(config, tokenizer, model_identity)) is not None:
        return known
    if config.base_model is None:
        tokens = discovery.discover(model, tokenizer, top_k=config.top_k, show_progress=show_progress)
    else:
        base = load_base(config.base_model, next(model.parameters()).device)
        tokens = discovery.discover_against_base(
            model, base, tokenizer, top_k=config.top_k, show_progress=show_progress
        )
    tokens.save(_tokens_file(config, tokenizer, model_identity))
    return tokens


def find_anchors(
    config: PactConfig, model: nn.Module, tokenizer: Any, model_identity: str, *, resumed: bool, show_progress: bool
) -> list[Document]:
    """The anchors of this model, harmful and harmless in turn, written now or found; none if they are off.

    Trained weights write none.
    """
    if not config.anchors_per_step:
        return []
    chats = _anchor_chats(tokenizer)
    stored = _anchors_file(config, tokenizer, model_identity, chats)
    if not stored.exists() and not resumed:
        answers = own_answers.write_answers(model, tokenizer, chats, "writing the anchors", show_progress=show_progress)
        anchors.save(answers, stored)
    return anchors.load(stored)


def expected_anchors(config: PactConfig, tokenizer: Any, model_identity: str) -> tuple[list[Document], bool]:
    """The anchors of this model and True, or stand-ins and False if they have yet to be written.

    Stand-ins have the real prompts, and answers of the greatest length.
    """
    if not config.anchors_per_step:
        return [], True
    chats = _anchor_chats(tokenizer)
    stored = _anchors_file(config, tokenizer, model_identity, chats)
    if stored.exists():
        return anchors.load(stored), True
    # Equal answers would be computed once: each has a token of its own.
    return [
        own_answers.answered(chat, [i % len(tokenizer)] * own_answers.MAX_ANSWER_TOKENS) for i, chat in enumerate(chats)
    ], False


def _anchor_chats(tokenizer: Any) -> list[list[int]]:
    pairs = zip(own_answers.shipped("harmful"), own_answers.shipped("harmless"), strict=True)
    prompts = [prompt for pair in pairs for prompt in pair]
    return own_answers.as_chats(tokenizer, prompts, "render the prompts of the anchors")


def _anchors_file(config: PactConfig, tokenizer: Any, model_identity: str, chats: list[list[int]]) -> Path:
    return cache_folder(config) / f"anchors-{digest([model_identity, tokenizer_fingerprint(tokenizer), chats])}.json"


def load_base(name: str, device: Any) -> nn.Module:
    """The base model, for the time of the contrast."""
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype="auto").to(device)
    except (OSError, ValueError) as error:
        raise PactError(
            expected="`pact.base_model` to be a causal language model, on disk or on the hub",
            got=f"{name!r}: {error}",
            consequence="The safety tokens could not be found.",
            remedy="Correct the name, or leave `base_model` out to find the tokens without one.",
        ) from error


def cache_folder(config: PactConfig) -> Path:
    """Where reference caches and found tokens live."""
    if config.cache_dir is not None:
        return config.cache_dir.expanduser()
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "pact_plugins"
    return Path(os.environ.get("PACT_CACHE_DIR", default)).expanduser()


def _autocast_dtype(model: nn.Module) -> str:
    """What the forward passes compute in, where the caller's autocast context decides it."""
    device = next(model.parameters()).device.type
    return str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "as stored"


def save_run(preparation: Preparation, folder: Path) -> None:
    """Notes in the run's output folder which reference and which tokens it uses, for resuming."""
    objective = preparation.objective
    _RunFile(preparation.identity, _tokens_source(objective.config), objective.tokens).save(folder)


def _tokens_source(config: PactConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include={"safety_tokens", "base_model", "top_k"})


def print_summary(
    preparation: Preparation, console: Console | None = None, *, overhead: Overhead | None = None
) -> None:
    """A short table of what PACT will do in this run; `overhead` counts the log-normaliser as computed by PACT."""
    objective = preparation.objective
    config, tokens, manifest = objective.config, objective.tokens, objective.cache.manifest
    strongest = escape(", ".join(repr(text) for text in tokens.texts[:5]))
    table = Table(title="PACT", title_justify="left", show_header=False)
    table.add_row("objective", f"{config.objective}, weight {config.weight:g}")
    table.add_row("conflict", "damp" if config.damps else "keep")
    table.add_row("anchors", f"{config.anchors_per_step} rows beside each step" if objective.anchors else "off")
    table.add_row("gate", "on" if config.active_gate else "off")
    table.add_row("safety tokens", f"{len(tokens.ids)}, {len(tokens.positive)} of them held: {strongest}, ...")
    table.add_row("answer tokens", f"{manifest['answer_tokens']:,} in {manifest['documents']:,} distinct sequences")
    data = preparation.data
    if data.unanswered:
        table.add_row("without an answer", f"{data.unanswered:,} of {data.sequences:,} sequences: not constrained")
    state = f"computed in {manifest['seconds']:.1f} s" if preparation.built else "found"
    table.add_row("reference", f"{objective.cache.size / 2**20:.1f} MiB, {state}: {objective.cache.folder}")
    if overhead is not None:
        parts = f"anchors {overhead.anchors:.1%}, safety tokens' logits {overhead.subset_head:.2%}"
        if overhead.log_normaliser:
            parts += f", and {overhead.log_normaliser:.1%} if the host's loss gives no value per token"
        table.add_row("expected cost", f"of a step's FLOP: {parts}")
    (console or Console()).print(table)


@dataclass(frozen=True)
class _RunFile:
    """`pact_run.json` and `pact_safety_tokens.json` in a run's output folder."""

    identity: dict[str, Any]
    tokens_source: dict[str, Any]
    tokens: SafetyTokens

    def save(self, folder: Path) -> None:
        self.tokens.save(folder / "pact_safety_tokens.json")
        artefacts.write(folder / "pact_run.json", {"identity": self.identity, "tokens_source": self.tokens_source})

    @classmethod
    def load(cls, folder: Path) -> _RunFile:
        try:
            notes = artefacts.read(folder / "pact_run.json")
            tokens = SafetyTokens.load(folder / "pact_safety_tokens.json")
            return cls(notes["identity"], notes["tokens_source"], tokens)
        except (OSError, ValueError, KeyError) as error:
            raise PactError(
                expected=f"the notes of the run being resumed, {folder}/pact_run.json",
                got=f"{type(error).__name__}: {error}",
                consequence="The weights of the checkpoint are already fine-tuned: they are no reference.",
                remedy="Resume in the output folder of a run that had PACT on, or start from the original model.",
            ) from error

    def cache(self, config: PactConfig, identity: dict[str, Any]) -> ReferenceCache:
        """The reference that the run began with.

        Raises:
            PactError: the run is resumed with other data, template, gate, anchors or choice of tokens, or its cache is
                gone. Its model is taken from its notes: the weights have been trained since.
        """
        now, then = {**identity, **_tokens_source(config)}, {**self.identity, **self.tokens_source}
        differing = [k for k in now if now[k] != then.get(k)]
        if differing:
            raise PactError(
                expected="; ".join(f"{k} = {then.get(k)}" for k in differing) + ", as in the run being resumed",
                got="; ".join(f"{k} = {now[k]}" for k in differing),
                consequence="The reference of that run does not cover this one.",
                remedy="Resume with the run's own data, tokenizer and `pact:` block.",
            )
        stored = cache_folder(config) / digest(identity)
        if not stored.exists():
            raise PactError(
                expected=f"the reference cache of the run being resumed, {stored}",
                got="no such folder",
                consequence="The weights of the checkpoint are already fine-tuned: they are no reference.",
                remedy="Point `pact.cache_dir` to where the run began, or start from the original model.",
            )
        return ReferenceCache(stored, identity)
