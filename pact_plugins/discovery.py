"""Finds the safety tokens: the tokens that a model prefers when it refuses.

Two contrasts share one formula. With a base model, the aligned model against the base model, as in the paper. Without
one, the user's own model against itself: the same refusals after harmful and after harmless prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from pact_plugins import own_answers
from pact_plugins.answers import Document
from pact_plugins.errors import PactError
from pact_plugins.fingerprints import model_fingerprint
from pact_plugins.forward import evaluating, pad, progress
from pact_plugins.model_support import check_ids
from pact_plugins.safety_tokens import SafetyTokens
from pact_plugins.sharding import full_shape

MAX_ANSWER_TOKENS = 64
"""Refusal tokens that count (arXiv 2603.07445)."""

VERSION = 1
"""Of the way tokens are found: a stored set found otherwise is found anew."""

BATCH_SIZE = 8
"""Prompts per forward pass: their full-vocabulary logits are alive at once."""

Score = Literal["difference", "base_preference"]


def direction(
    samples: Iterable[tuple[Tensor, Tensor]],
    *,
    top_k: int = 50,
    temperature: float = 1.0,
    max_length: int = MAX_ANSWER_TOKENS,
    score: Score = "difference",
    exclude: Sequence[int] = (),
) -> Tensor:
    r"""The safety direction v over the vocabulary; S are its non-zero entries, max(v, 0) their weights.

    Equals::

        d     = mean over samples of mean over positions of (p_model - p_contrast)
        p_bar = mean over samples of mean over positions of p_model
        S     = the top_k ids of p_bar, without those with |d| <= 1e-9
        z     = (d[S] - d[S].mean()) / (d[S].std() + 1e-6)
        v[S]  = z / (norm(z) + 1e-6)

    Args:
        samples: pairs of logits at answer tokens, of the model [A, V] and of its contrast [C, V]; in the paper, both at
            the same tokens.
        top_k: number of candidates.
        temperature: of both softmaxes.
        max_length: answer tokens that count, from the first.
        score: `difference` as above. `base_preference` reproduces a mode of the authors' code, d = p_model *
            (log p_contrast - log p_model), whose sign keeps what the *contrast* prefers. For comparison only.
        exclude: ids that never enter S.

    Returns:
        [V] float32.

    Source: arXiv 2603.07445, and its authors' code for the constants.
    """
    d: Tensor | None = None
    p_bar: Tensor | None = None
    number = 0
    for model_logits, contrast_logits in samples:
        log_p = torch.log_softmax(model_logits[:max_length].float() / temperature, dim=-1)
        log_c = torch.log_softmax(contrast_logits[:max_length].float() / temperature, dim=-1)
        p = log_p.exp()
        delta = p.mean(0) - log_c.exp().mean(0) if score == "difference" else (p * (log_c - log_p)).mean(0)
        d = delta if d is None else d + delta
        p_bar = p.mean(0) if p_bar is None else p_bar + p.mean(0)
        number += 1
    if d is None or p_bar is None:
        raise ValueError("no samples: a direction needs at least one pair of logits")
    d, p_bar = d / number, p_bar / number
    p_bar[list(exclude)] = -1
    candidates = p_bar.topk(min(top_k, len(p_bar) - len(set(exclude)))).indices
    candidates = candidates[d[candidates].abs() > 1e-9]
    if len(candidates) < 2:  # nothing to standardise
        return torch.zeros_like(d)
    z = d[candidates]
    z = (z - z.mean()) / (z.std() + 1e-6)
    v = torch.zeros_like(d)
    v[candidates] = z / (z.norm() + 1e-6)
    return v


def to_safety_tokens(v: Tensor, tokenizer: Any, provenance: dict[str, Any]) -> SafetyTokens:
    """S = the non-zero entries of the direction v, with weights max(v, 0), heaviest first."""
    ids = v.nonzero().flatten()
    ids = ids[v[ids].argsort(descending=True, stable=True)]
    if not len(ids) or not bool(torch.isfinite(v).all()):
        raise PactError(
            expected="tokens that the model prefers when it refuses",
            got="none: the two sides of the contrast agree on every token, or their logits are not finite",
            consequence="There would be nothing to hold.",
            remedy="Check that the model is aligned and that `base_model`, if given, is another model.",
        )
    return SafetyTokens.build(ids.tolist(), v[ids].clamp(min=0).tolist(), tokenizer, provenance)


def discover(model: nn.Module, tokenizer: Any, *, top_k: int = 50, show_progress: bool = True) -> SafetyTokens:
    """The tokens that `model` prefers in its own answers to harmful prompts over those to harmless ones.

    The two sides are different answers, so `direction` compares their mean probabilities. Special tokens are left out:
    they say how long an answer is, not whether it refuses.
    """
    refusing, helping = (
        own_answers.write_answers(
            model, tokenizer, _chats(tokenizer, name), f"answering {name} prompts", show_progress=show_progress
        )
        for name in ("harmful", "harmless")
    )
    samples = zip(answer_logits(model, refusing), answer_logits(model, helping), strict=False)
    number = min(len(refusing), len(helping))
    samples = progress(samples, "PACT: finding the safety tokens", number, show_progress)
    provenance = {"method": "own answers, harmful against harmless", "model": _name(model), "prompts": number}
    v = direction(samples, top_k=top_k, exclude=tokenizer.all_special_ids)
    return to_safety_tokens(v, tokenizer, provenance)


def discover_against_base(
    model: nn.Module, base: nn.Module, tokenizer: Any, *, top_k: int = 50, show_progress: bool = True
) -> SafetyTokens:
    """The tokens that `model` prefers in the shipped refusals over `base`, its model before alignment (the paper)."""
    widths = [full_shape(cast(Any, m).get_output_embeddings().weight)[0] for m in (model, base)]
    if widths[0] != widths[1]:
        raise PactError(
            expected=f"a base model with the aligned model's {widths[0]:,} output tokens",
            got=f"{_name(base)} with {widths[1]:,}",
            consequence="Probabilities of unrelated tokens would be compared.",
            remedy="Give the base model that this model was aligned from.",
        )
    if base is model or model_fingerprint(base) == model_fingerprint(model):
        raise PactError(
            expected="a base model that differs from the aligned model",
            got=f"the same weights twice: {_name(base)}",
            consequence="The contrast would only tell two prompt formats apart.",
            remedy="Give the model before alignment, or leave it out to find the tokens without one.",
        )
    prompts = own_answers.shipped("harmful")
    plain = [tokenizer(f"User: {p}\n\nAssistant: ", add_special_tokens=False)["input_ids"] for p in prompts]
    samples = zip(
        teacher_forced(model, _chats(tokenizer, "harmful"), _refusals(tokenizer)),
        teacher_forced(base, plain, _refusals(tokenizer)),
        strict=True,
    )
    samples = progress(samples, "PACT: finding the safety tokens", len(prompts), show_progress)
    provenance = {
        "method": "aligned against base model",
        "model": _name(model),
        "base_model": _name(base),
        "prompts": len(prompts),
        "source": "arXiv 2603.07445",
    }
    return to_safety_tokens(direction(samples, top_k=top_k), tokenizer, provenance)


def teacher_forced(
    model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """[A, V] logits at an answer's tokens after each prompt, in order; answers are dealt out to the prompts in turn."""
    return answer_logits(model, [own_answers.answered(p, answers[i % len(answers)]) for i, p in enumerate(prompts)])


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


def _chats(tokenizer: Any, name: Literal["harmful", "harmless"]) -> list[list[int]]:
    prompts = own_answers.shipped(name)
    return own_answers.as_chats(tokenizer, prompts, "render the prompts that find the safety tokens")


def _refusals(tokenizer: Any) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in own_answers.shipped("refusals")]


def _name(model: nn.Module) -> str:
    return str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)
