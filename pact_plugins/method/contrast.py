"""The paper's direction over the vocabulary, and how far it depends on the prompts that it was found with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

MAX_ANSWER_TOKENS = 64
"""Refusal tokens that count (arXiv 2603.07445)."""

RESAMPLES = 200
"""Of the bootstrap: its intervals' ends are then the fifth smallest and fifth greatest weight."""

Score = Literal["difference", "base_preference"]


@dataclass(frozen=True)
class Contrast:
    """A model against its contrast, sample by sample; each row a mean over the sample's first answer tokens.

    Attributes:
        probabilities: [n, V] of the model, p.
        differences: [n, V] to the contrast, d.
    """

    probabilities: Tensor
    differences: Tensor

    @classmethod
    def of(
        cls,
        samples: Iterable[tuple[Tensor, Tensor]],
        *,
        temperature: float = 1.0,
        max_length: int = MAX_ANSWER_TOKENS,
        score: Score = "difference",
    ) -> Contrast:
        """Reads the samples.

        Args:
            samples: pairs of logits at answer tokens, of the model [A, V] and of its contrast [C, V]; in the paper,
                both at the same tokens.
            temperature: of both softmaxes.
            max_length: answer tokens that count, from the first.
            score: `difference`, d = p - p_contrast. `base_preference` reproduces a mode of the authors' code,
                d = p * (log p_contrast - log p), whose sign keeps what the *contrast* prefers. For comparison only.
        """
        rows: list[tuple[Tensor, Tensor]] = []
        for model_logits, contrast_logits in samples:
            log_p = torch.log_softmax(model_logits[:max_length].float() / temperature, dim=-1)
            log_c = torch.log_softmax(contrast_logits[:max_length].float() / temperature, dim=-1)
            p = log_p.exp()
            d = p.mean(0) - log_c.exp().mean(0) if score == "difference" else (p * (log_c - log_p)).mean(0)
            rows.append((p.mean(0), d))
        if not rows:
            raise ValueError("no samples: a direction needs at least one pair of logits")
        return cls(torch.stack([p for p, _ in rows]), torch.stack([d for _, d in rows]))

    def __len__(self) -> int:
        return len(self.probabilities)

    def direction(self, *, top_k: int = 50, counts: Tensor | None = None) -> Tensor:
        r"""The safety direction v over the vocabulary; S are its non-zero entries, max(v, 0) their weights.

        Equals::

            p_bar, d = means over samples
            S        = the top_k ids of p_bar, without those with |d| <= 1e-9
            z        = (d[S] - d[S].mean()) / (d[S].std() + 1e-6)
            v[S]     = z / (norm(z) + 1e-6)

        Args:
            counts: [n] how often each sample counts; once, if it is None.

        Returns:
            [V] float32.

        Source: arXiv 2603.07445, and its authors' code for the constants.
        """
        p_bar, d = (
            values.mean(0) if counts is None else counts @ values / counts.sum()
            for values in (self.probabilities, self.differences)
        )
        candidates = p_bar.topk(min(top_k, len(p_bar))).indices
        candidates = candidates[d[candidates].abs() > 1e-9]
        if len(candidates) < 2:  # nothing to standardise
            return torch.zeros_like(d)
        z = d[candidates]
        z = (z - z.mean()) / (z.std() + 1e-6)
        v = torch.zeros_like(d)
        v[candidates] = z / (z.norm() + 1e-6)
        return v

    def resampled(self, ids: Sequence[int], *, top_k: int = 50) -> Tensor:
        """[RESAMPLES, len(ids)] weights max(v, 0) of `ids` when the samples are drawn anew, with replacement."""
        generator = torch.Generator().manual_seed(0)
        weights = torch.zeros(RESAMPLES, len(ids))
        chosen = torch.tensor(list(ids), dtype=torch.long)
        for row in weights:
            drawn = torch.randint(len(self), (len(self),), generator=generator)
            counts = drawn.bincount(minlength=len(self)).float()
            row[:] = self.direction(top_k=top_k, counts=counts)[chosen].clamp(min=0)
        return weights

    def separation(self, *, top_k: int = 50) -> float:
        """How well the direction tells the model's samples from their contrasts: 1 always, 0.5 not at all.

        The direction is found in one half of the samples and scores the other, both ways; a sample's score is the
        inner product of its mean probabilities with the direction. Equals the share of pairs (a sample, a contrast) in
        which the sample has the higher score, ties counting half (the area under the ROC curve).
        """
        even = torch.arange(len(self)) % 2 == 0
        areas: list[Tensor] = []
        for found_in, scored in ((even, ~even), (~even, even)):
            if found_in.any() and scored.any():
                v = self.direction(top_k=top_k, counts=found_in.float())
                model = self.probabilities[scored] @ v
                contrast = model - self.differences[scored] @ v
                margin = model[:, None] - contrast[None]
                areas.append(((margin > 0).float() + 0.5 * (margin == 0)).mean())
        return float(torch.stack(areas).mean()) if areas else 0.5
