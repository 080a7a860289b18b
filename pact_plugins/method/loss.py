r"""The objectives as pure functions over answer tokens and safety tokens.

Shapes: N answer tokens (of any number of answers), S safety tokens. Spaces: *log-probability* is under the softmax over
the full vocabulary; *logits over S* are meant up to one constant per row, so log-probabilities serve as well.
Every function works in float32 or wider, and returns one value per answer token; hosts sum and normalise.

Source: Wang, Shi, Ouyang, Wang, "Few Tokens, Big Leverage: Preserving Safety Alignment by Constraining Safety Tokens
during Fine-tuning", arXiv 2603.07445. `paper` is the objective of the authors' code; `confidence` is the aim stated in
the abstract; `conflict`, damping, and `divergence` at anchors are this package's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_PROBABILITY = 1e-12
"""Floor of a target probability inside a logarithm in `paper`."""

MAX_MASS = 1 - 1e-6
"""Largest probability that the safety tokens together may have in `confidence`: keeps log(1 - mass) finite."""

OPENING = 8
"""Tokens in which an answer turns to a refusal or away from one: a whole first sentence in no more words."""


def gate(
    student: Tensor,
    answer_only: Tensor,
    position: Tensor,
    *,
    mass: float = 0.9,
    slope: float = 2.0,
    bias: float = 0.0,
    temperature: float = 1.0,
    hold: int = 8,
    decay: float = 8.0,
    boost: float = 1.0,
) -> Tensor:
    r"""How much the reference without the prompt replaces the reference with it, per answer token.

    The gate opens where the student is less certain over S than the reference is without the prompt::

        g_t = sigmoid(slope * ((n(student) - n(answer_only)) / S - bias)) * exp(-max(t - hold, 0) / decay) * boost

    where n(z) is the smallest number of tokens whose probabilities under softmax(z / temperature) reach `mass`.

    Args:
        student: [N, S] logits over S of the model being trained.
        answer_only: [N, S] logits over S of the reference that sees header and answer, but no prompt.
        position: [N] index t of each token in its own answer, 0 at the first.

    Returns:
        [N] values in [0, boost]; no gradient flows through them.
    """
    _same_shape(student, answer_only)
    with torch.no_grad():
        difference = _tokens_to_mass(student, mass, temperature) - _tokens_to_mass(answer_only, mass, temperature)
        opening = torch.sigmoid(slope * (difference.to(student.dtype) / student.shape[-1] - bias))
        return opening * torch.exp(-(position.to(student.dtype) - hold).clamp(min=0) / decay) * boost


def paper(
    student: Tensor,
    full: Tensor,
    answer_only: Tensor | None,
    gate_value: Tensor | None,
    weights: Tensor,
    *,
    temperature: float = 2.0,
) -> Tensor:
    r"""KL divergence from the reweighted reference to the student over S, as in the authors' code.

    Equals, for one answer token::

        z = (1 - g) * full + g * answer_only                       # g = 0 when there is no gate
        q = softmax(z / T) * weights; q = q / q.sum()
        kl = T**2 * (q * (q.log() - log_softmax(student / T))).sum()

    Not zero when student and reference agree: q is reweighted and the student is not. Blind to the absolute
    probability of S, since both softmaxes run over S alone.

    Args:
        student: [N, S] logits over S, with gradient.
        full: [N, S] logits over S of the reference with its full context.
        answer_only: [N, S] logits over S of the reference without the prompt; None when there is no gate.
        gate_value: [N] values of `gate`, or None.
        weights: [S] non-negative token weights, not all zero (`SafetyTokens` guarantees both).

    Returns:
        [N] divergences in nats, times T squared.
    """
    _same_shape(student, full)
    if weights.shape != student.shape[-1:]:
        raise ValueError(f"weights must be [{student.shape[-1]}], one per safety token; got {tuple(weights.shape)}")
    target = full
    if gate_value is not None and answer_only is not None:
        g = gate_value.unsqueeze(-1)
        target = (1 - g) * full + g * answer_only
    q = torch.softmax(target / temperature, dim=-1) * weights
    q = q / q.sum(-1, keepdim=True).clamp(min=MIN_PROBABILITY)
    log_q = q.clamp(min=MIN_PROBABILITY).log()
    log_s = torch.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (q * (log_q - log_s)).sum(-1)


def confidence(
    student: Tensor,
    full: Tensor,
    answer_only: Tensor | None,
    gate_value: Tensor | None,
    positive: Tensor,
) -> Tensor:
    r"""KL divergence from reference to student over {each token of S+} and one bucket "everything else".

    S+ are the safety tokens with a positive weight. Equals, for one answer token, with probabilities p of the
    reference and s of the student under the full-vocabulary softmax::

        kl = sum(p_i * log(p_i / s_i) for i in S+) + p_rest * log(p_rest / s_rest),    p_rest = 1 - sum(p_i)

    Zero exactly when the student's probabilities on S+ equal the reference's. With a gate, p is mixed bucket by bucket:
    (1 - g) * p_full + g * p_answer_only, and the divergence is no longer zero at equality.

    Args:
        student: [N, S] log-probabilities, with gradient.
        full: [N, S] log-probabilities of the reference with its full context.
        answer_only: [N, S] log-probabilities of the reference without the prompt; None when there is no gate.
        gate_value: [N] values of `gate`, or None.
        positive: [K] indices of S+ within S.

    Returns:
        [N] divergences in nats.
    """
    _same_shape(student, full)
    if positive.numel() == 0:
        raise ValueError("no safety token has a positive weight: there is nothing to hold, and the loss would be zero")
    if gate_value is None or answer_only is None:
        return divergence(student[:, positive], full[:, positive])
    log_s = _partition(student[:, positive])
    g = gate_value.unsqueeze(-1)
    p = (1 - g) * _partition(full[:, positive]).exp() + g * _partition(answer_only[:, positive]).exp()
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    return (log_p.exp() * (log_p - log_s)).sum(-1)


def divergence(student: Tensor, reference: Tensor) -> Tensor:
    r"""KL divergence from reference to student over {each of K tokens} and one bucket "everything else".

    Equals, with probabilities p of the reference and s of the student under the full-vocabulary softmax::

        kl = sum(p_k * log(p_k / s_k) for k in K) + p_rest * log(p_rest / s_rest),    p_rest = 1 - sum(p_k)

    At anchors, K are the tokens that the reference finds most probable at each place.

    Args:
        student: [N, K] log-probabilities, with gradient.
        reference: [N, K] log-probabilities of the same tokens.

    Returns:
        [N] divergences in nats.
    """
    _same_shape(student, reference)
    log_s, log_p = _partition(student), _partition(reference)
    return (log_p.exp() * (log_p - log_s)).sum(-1)


def conflict(harm: Tensor, position: Tensor, answer: Tensor, label_in_s: Tensor) -> Tensor:
    r"""How surely an answer goes along with a harmful request: the reason to damp its cross-entropy.

    For each answer, with h the probability that its prompt asks for harm::

        m = h if any(label not in S+ for its first `OPENING` tokens) else 0

    A row that refuses as the reference does is in no conflict with it, whatever it is asked.

    Args:
        harm: [A] scores of the prompts by the harm probe (`harm_probe`).
        position: [N] index of each token in its own answer; those below 0 are passed over.
        answer: [N] number of the answer that each token belongs to, counted from 0.
        label_in_s: [N] boolean, True where the row's own token is in S+.

    Returns:
        [N] values in [0, 1], constant within an answer.
    """
    turns = ~label_in_s & (position >= 0) & (position < OPENING)
    away = torch.zeros_like(harm).index_add_(0, answer, turns.to(harm.dtype)) > 0
    return torch.where(away, harm, 0.0)[answer]


def _tokens_to_mass(logits: Tensor, mass: float, temperature: float) -> Tensor:
    """[N] smallest number of most probable tokens that together reach `mass`; `logits` is [N, S]."""
    probabilities = torch.softmax(logits / temperature, dim=-1).sort(dim=-1, descending=True).values
    count = (probabilities.cumsum(-1) < mass).sum(-1) + 1
    return count.clamp(max=logits.shape[-1])


def _partition(log_probabilities: Tensor) -> Tensor:
    """[N, K] log-probabilities -> [N, K + 1]: the last column is log(1 - sum), with the sum kept below `MAX_MASS`."""
    log_mass = torch.logsumexp(log_probabilities, dim=-1, keepdim=True)
    log_mass = log_mass.clamp(max=math.log(MAX_MASS))
    # log1mexp: log(-expm1(x)) is exact for x near 0, log1p(-exp(x)) for x far below it.
    near_zero = log_mass > -math.log(2)
    log_rest = torch.where(
        near_zero,
        torch.log(-torch.expm1(torch.where(near_zero, log_mass, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_zero, -1.0, log_mass))),
    )
    return torch.cat([log_probabilities, log_rest], dim=-1)


def _same_shape(student: Tensor, reference: Tensor) -> None:
    if student.shape != reference.shape or student.ndim != 2:
        raise ValueError(
            f"student and reference must both be [answer tokens, safety tokens]; got {tuple(student.shape)} and "
            f"{tuple(reference.shape)}, which would broadcast or misalign silently"
        )
