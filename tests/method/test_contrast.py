"""The direction of a contrast, and how far it depends on its samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pact_plugins.method.contrast import RESAMPLES, Contrast


def direction(samples: list[tuple[Tensor, Tensor]], *, top_k: int = 50, max_length: int = 64) -> Tensor:
    return Contrast.of(samples, max_length=max_length).direction(top_k=top_k)


def contrast(probabilities: list[list[float]], other: list[list[float]]) -> Contrast:
    """A contrast whose samples have these mean probabilities on both sides."""
    model, contrast = torch.tensor(probabilities), torch.tensor(other)
    return Contrast(model, model - contrast)


def test_direction_is_a_mean_over_samples() -> None:
    """Prevents: long refusals counting more than short ones, or the order of the prompts mattering."""
    torch.manual_seed(0)
    samples = [(torch.randn(n, 30), torch.randn(n, 30)) for n in (1, 9, 4)]
    v = direction(samples, top_k=12)
    assert torch.allclose(v, direction(samples[::-1], top_k=12), atol=1e-6)
    assert torch.allclose(v, direction([*samples, *samples], top_k=12), atol=1e-6)
    repeated = [(a.repeat(5, 1), b.repeat(5, 1)) for a, b in samples[:1]] + samples[1:]
    assert torch.allclose(v, direction(repeated, top_k=12), atol=1e-6)
    assert int((v != 0).sum()) == 12
    assert abs(v.norm().item() - 1) < 1e-4


def test_direction_ignores_tokens_beyond_the_limit() -> None:
    """Prevents: a long refusal's ordinary sentences diluting its opening."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 9, 30)
    assert torch.equal(direction([(a, b)], max_length=4), direction([(a[:4], b[:4])]))


def test_no_samples_is_an_error() -> None:
    """Prevents: an empty prompt file giving an empty, and therefore harmless-looking, direction."""
    with pytest.raises(ValueError, match="no samples"):
        Contrast.of([])


def test_counts_are_repetitions() -> None:
    """Prevents: a bootstrap that resamples something other than the samples."""
    torch.manual_seed(0)
    samples = [(torch.randn(n, 30), torch.randn(n, 30)) for n in (1, 9, 4)]
    counted = Contrast.of(samples).direction(top_k=12, counts=torch.tensor([2.0, 0.0, 1.0]))
    repeated = Contrast.of([samples[0], samples[0], samples[2]]).direction(top_k=12)
    assert torch.allclose(counted, repeated, atol=1e-5)


def test_what_all_samples_say_is_held_in_every_resample() -> None:
    """Prevents: intervals that say nothing: a token of every refusal has none, one of a single refusal is shaky."""
    always, once, helping = [0.8, 0.0, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.0, 0.5, 0.4]
    found = contrast([always] * 9 + [once], [helping] * 10)
    weights = found.resampled([0, 1], top_k=4)
    held = (weights > 0).float().mean(0)
    assert weights.shape == (RESAMPLES, 2)
    assert held[0] == 1
    assert 0 < held[1] < 1
    assert weights[:, 0].std() < weights[:, 1].std() + weights[:, 0].mean()
    assert torch.equal(weights, found.resampled([0, 1], top_k=4))


def test_separation_is_measured_on_other_samples() -> None:
    """Prevents: a figure that is high for noise, since the direction was fitted to the very samples that it scores."""
    refusing, helping = [0.7, 0.1, 0.2], [0.1, 0.7, 0.2]
    assert contrast([refusing] * 8, [helping] * 8).separation() == 1
    assert contrast([refusing, helping] * 4, [helping, refusing] * 4).separation() < 0.5
    torch.manual_seed(0)
    noise = Contrast.of([(torch.randn(4, 300), torch.randn(4, 300)) for _ in range(64)])
    assert 0.3 < noise.separation() < 0.7
    assert contrast([refusing], [helping]).separation() == 0.5  # one sample has no other half
