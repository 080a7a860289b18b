"""Finds the safety tokens: the tokens that a model prefers when it refuses.

Two contrasts share one formula. With a base model, the aligned model against the base model, as in the paper. Without
one, the user's own model against itself: its own answers to harmful and to harmless prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pact_plugins.chat.answers import Document
from pact_plugins.chat.template import markers
from pact_plugins.errors import PactError
from pact_plugins.method import asking, prompting, refusals
from pact_plugins.method.asking import Asked
from pact_plugins.method.contrast import MAX_ANSWER_TOKENS, Contrast
from pact_plugins.method.prompting import Prompts
from pact_plugins.method.safety_tokens import SafetyTokens, Stability
from pact_plugins.model.fingerprints import model_fingerprint
from pact_plugins.model.forward import evaluating, pad
from pact_plugins.model.progress import progress
from pact_plugins.model.ranks import ALONE, Ranks
from pact_plugins.model.sharding import full_shape
from pact_plugins.model.support import check_ids

VERSION = 4
"""Of the way tokens are found: a stored set found otherwise is found anew."""

BATCH_SIZE = 8
"""Prompts per forward pass: their full-vocabulary logits are alive at once."""

CONTEXT = 6
"""Tokens of an answer that are shown before and after an example."""

_PURPOSE = "render the prompts that find the safety tokens"


def to_safety_tokens(
    contrast: Contrast,
    tokenizer: Any,
    provenance: dict[str, Any],
    answers: Sequence[Document],
    *,
    columns: Tensor | None = None,
    top_k: int = 50,
    refused: float | None = None,
) -> SafetyTokens:
    """S = the non-zero entries of the contrast's direction v, with weights max(v, 0), heaviest first.

    Args:
        answers: in which examples of the tokens are looked for.
        columns: ids of the contrast's columns; without it they are all ids in order.
        refused: `refusals` of `Stability`.

    Raises:
        PactError: the contrast has no direction.
    """
    v = contrast.direction(top_k=top_k)
    chosen = v.nonzero().flatten()
    chosen = chosen[v[chosen].argsort(descending=True, stable=True)]
    if not len(chosen) or not bool(torch.isfinite(v).all()):
        raise PactError(
            expected="tokens that the model prefers when it refuses",
            got="none: the two sides of the contrast agree on every token, or their logits are not finite",
            consequence="There would be nothing to hold.",
            remedy="Check that the model is aligned and that `base_model`, if given, is another model.",
        )
    weights = contrast.resampled(chosen.tolist(), top_k=top_k)
    low, high = weights.quantile(torch.tensor([0.025, 0.975]), dim=0)
    ids = chosen if columns is None else columns[chosen]
    found = SafetyTokens.build(ids.tolist(), v[chosen].clamp(min=0).tolist(), tokenizer, provenance)
    stability = Stability(
        held=tuple((weights > 0).float().mean(0).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        examples=tuple(_example(token, answers, tokenizer) for token in found.ids),
        separation=contrast.separation(top_k=top_k),
        refusals=refused,
    )
    return replace(found, stability=stability)


def _example(token: int, answers: Sequence[Document], tokenizer: Any) -> str:
    """Where the token first stands in an answer, with what is around it."""
    for document in answers:
        answer = document.input_ids[document.supervised].tolist()
        if token in answer:
            at = answer.index(token)
            before, after = answer[max(0, at - CONTEXT) : at], answer[at + 1 : at + 1 + CONTEXT]
            return f"{tokenizer.decode(before)}[{tokenizer.decode([token])}]{tokenizer.decode(after)}"
    return ""


def discover(model: nn.Module, tokenizer: Any, prompts: Prompts | None = None, *, top_k: int = 50) -> SafetyTokens:
    """The tokens that `model`, as it is now, prefers in its own answers to harmful prompts (see `in_answers`).

    Args:
        prompts: what it is asked; the shipped English ones, if None.
    """
    asked = prompts or Prompts.shipped()
    chats = prompting.as_chats(tokenizer, asked.in_turn, _PURPOSE)
    answers = asking.ask(model, tokenizer, chats)
    return in_answers(answers, asked.harmful, tokenizer, name_of(model), top_k=top_k)


def in_answers(answers: Asked, harmful: Sequence[str], tokenizer: Any, model: str, *, top_k: int = 50) -> SafetyTokens:
    """The tokens that a model prefers in its answers to harmful prompts over those to harmless ones.

    The two sides are different answers, so the contrast compares their mean probabilities. Markers of the chat template
    are left out, whether the tokenizer calls them special or not: they say how long an answer is, not whether it
    refuses.

    Args:
        answers: to harmful and harmless prompts in turn.
        model: its name.
    """
    columns, places = answers.likely.unique(return_inverse=True)
    probabilities = torch.zeros(len(places), len(columns)).scatter_(1, places, answers.probabilities)
    kept = ~torch.isin(columns, torch.tensor(sorted(markers(tokenizer))))
    refusing, helping = probabilities[0::2, kept], probabilities[1::2, kept]
    of_harmful = answers.documents[0::2]
    texts = [tokenizer.decode(d.input_ids[d.supervised], skip_special_tokens=True) for d in of_harmful]
    return to_safety_tokens(
        Contrast(refusing, refusing - helping),
        tokenizer,
        {"method": "own answers, harmful against harmless", "model": model, "prompts": len(of_harmful)},
        of_harmful,
        columns=columns[kept],
        top_k=top_k,
        refused=_refused(harmful, texts),
    )


def _refused(prompts: Sequence[str], answers: Sequence[str]) -> float | None:
    """Share of the answers that refuse, of those that the judge can judge; None if there are none."""
    verdicts = [verdict for verdict in refusals.judge(prompts, answers) if verdict != "cannot judge"]
    return verdicts.count("refusal") / len(verdicts) if verdicts else None


def discover_against_base(
    model: nn.Module,
    base: nn.Module,
    tokenizer: Any,
    prompts: Prompts | None = None,
    *,
    top_k: int = 50,
    ranks: Ranks = ALONE,
) -> SafetyTokens:
    """The tokens that `model` prefers in the shipped refusals over `base`, its model before alignment (the paper)."""
    widths = [full_shape(cast(Any, m).get_output_embeddings().weight)[0] for m in (model, base)]
    if widths[0] != widths[1]:
        raise PactError(
            expected=f"a base model with the aligned model's {widths[0]:,} output tokens",
            got=f"{name_of(base)} with {widths[1]:,}",
            consequence="Probabilities of unrelated tokens would be compared.",
            remedy="Give the base model that this model was aligned from.",
        )
    if base is model or model_fingerprint(base) == model_fingerprint(model):
        raise PactError(
            expected="a base model that differs from the aligned model",
            got=f"the same weights twice: {name_of(base)}",
            consequence="The contrast would only tell two prompt formats apart.",
            remedy="Give the model before alignment, or leave it out to find the tokens without one.",
        )
    asked = (prompts or Prompts.shipped()).harmful
    chats = prompting.as_chats(tokenizer, asked, _PURPOSE)
    plain = [tokenizer(f"User: {p}\n\nAssistant: ", add_special_tokens=False)["input_ids"] for p in asked]
    taught = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompting.shipped("refusals")]
    samples = zip(teacher_forced(model, chats, taught), teacher_forced(base, plain, taught), strict=True)
    contrast = Contrast.of(progress(samples, "PACT: finding the safety tokens", len(asked), ranks.is_first))
    provenance = {
        "method": "aligned against base model",
        "model": name_of(model),
        "base_model": name_of(base),
        "prompts": len(asked),
        "source": "arXiv 2603.07445",
    }
    answers = [prompting.answered((), refusal) for refusal in taught]
    return to_safety_tokens(contrast, tokenizer, provenance, answers, top_k=top_k)


def teacher_forced(
    model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """[A, V] logits at an answer's tokens after each prompt, in order; answers are dealt out to the prompts in turn."""
    return answer_logits(model, [prompting.answered(p, answers[i % len(answers)]) for i, p in enumerate(prompts)])


def answer_logits(model: nn.Module, documents: Sequence[Document]) -> Iterator[Tensor]:
    """[A, V] logits at the first supervised tokens of each document, in order.

    Raises:
        PactError: the model has no embedding for a token.
    """
    check_ids(model, (document.input_ids for document in documents), "a prompt or its answer")
    device = next(model.parameters()).device
    for start in range(0, len(documents), BATCH_SIZE):
        batch = documents[start : start + BATCH_SIZE]
        ids, mask = pad([document.input_ids for document in batch], device)
        with evaluating(model):
            logits = model(input_ids=ids, attention_mask=mask).logits
        for row, document in enumerate(batch):
            columns = np.flatnonzero(document.supervised)[:MAX_ANSWER_TOKENS] - 1
            yield logits[row, torch.from_numpy(columns).to(device)].float().cpu()


def name_of(model: nn.Module) -> str:
    """The folder or the name on the hub that a model was loaded from, or else its class."""
    return str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)
