"""The objectives against slow loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pact_plugins.config import GateConfig
from pact_plugins.method import loss


def softmax(z: list[float], temperature: float = 1.0) -> list[float]:
    top = max(z)
    e = [math.exp((x - top) / temperature) for x in z]
    return [x / sum(e) for x in e]


def slow_count(z: list[float], mass: float) -> int:
    total, count = 0.0, 0
    for p in sorted(softmax(z), reverse=True):
        count += 1
        total += p
        if total >= mass:
            break
    return count


def slow_gate(student: list[float], answer_only: list[float], t: int) -> float:
    difference = (slow_count(student, 0.9) - slow_count(answer_only, 0.9)) / len(student)
    return 1 / (1 + math.exp(-2 * difference)) * math.exp(-max(t - 8, 0) / 8)


def slow_paper(s: list[float], full: list[float], ans: list[float], g: float, w: list[float], temp: float) -> float:
    q = softmax([(1 - g) * a + g * b for a, b in zip(full, ans, strict=True)], temp)
    q = [a * b for a, b in zip(q, w, strict=True)]
    total = max(sum(q), 1e-12)
    p = softmax(s, temp)
    return temp**2 * sum(a / total * (math.log(max(a / total, 1e-12)) - math.log(b)) for a, b in zip(q, p, strict=True))


def slow_confidence(s: list[float], full: list[float], ans: list[float], g: float) -> float:
    p = [(1 - g) * math.exp(a) + g * math.exp(b) for a, b in zip(full, ans, strict=True)]
    q = [math.exp(x) for x in s]
    p, q = [*p, 1 - min(sum(p), loss.MAX_MASS)], [*q, 1 - min(sum(q), loss.MAX_MASS)]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def cases(seed: int, n: int, s: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities over S of a vocabulary of 2 S, of student and both references, and positions."""
    generator = torch.Generator().manual_seed(seed)
    logs = (4 * torch.randn(3, n, 2 * s, generator=generator, dtype=torch.float64)).log_softmax(-1)[..., :s]
    return logs[0], logs[1], logs[2], torch.randint(0, 30, (n,), generator=generator)


SIZES = {"seed": st.integers(0, 10**6), "n": st.integers(1, 5), "s": st.integers(1, 7)}


@settings(max_examples=200, deadline=None)
@given(**SIZES, gated=st.booleans(), temperature=st.floats(0.5, 4))
def test_paper_equals_its_formula(seed: int, n: int, s: int, gated: bool, temperature: float) -> None:
    """Prevents a vectorised loss that differs from the formula on some shape."""
    student, full, answer_only, position = cases(seed, n, s)
    weights = torch.rand(s, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    g = loss.gate(student, answer_only, position) if gated else None
    kl = loss.paper(student, full, answer_only if gated else None, g, weights, temperature=temperature)
    for i in range(n):
        slow_g = slow_gate(student[i].tolist(), answer_only[i].tolist(), int(position[i])) if gated else 0.0
        expected = slow_paper(
            student[i].tolist(), full[i].tolist(), answer_only[i].tolist(), slow_g, weights.tolist(), temperature
        )
        assert kl[i].item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


@settings(max_examples=200, deadline=None)
@given(**SIZES, gated=st.booleans())
def test_confidence_equals_its_formula(seed: int, n: int, s: int, gated: bool) -> None:
    """Prevents a lost bucket, or a divergence taken in the wrong direction."""
    student, full, answer_only, position = cases(seed, n, s)
    g = loss.gate(student, answer_only, position) if gated else None
    kl = loss.confidence(student, full, answer_only if gated else None, g, torch.arange(s))
    for i in range(n):
        slow_g = slow_gate(student[i].tolist(), answer_only[i].tolist(), int(position[i])) if gated else 0.0
        expected = slow_confidence(student[i].tolist(), full[i].tolist(), answer_only[i].tolist(), slow_g)
        assert kl[i].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_confidence_is_zero_at_equality_and_paper_is_not() -> None:
    """Prevents a safety term that moves an unchanged model."""
    _, full, _, _ = cases(0, 4, 6)
    assert loss.confidence(full, full, None, None, torch.arange(6)).abs().max() == 0
    assert loss.paper(full, full, None, None, torch.arange(6).double()).min() > 0


def test_only_confidence_sees_the_absolute_probability() -> None:
    """Prevents the belief that `paper` notices when "Sure" outgrows every safety token."""
    _, full, _, _ = cases(0, 4, 6)
    fallen = full - 5
    weights = torch.ones(6).double()
    torch.testing.assert_close(
        loss.paper(fallen, full, None, None, weights), loss.paper(full, full, None, None, weights)
    )
    assert loss.confidence(fallen, full, None, None, torch.arange(6)).min() > 1e-4


def test_gradients_are_those_of_the_values() -> None:
    """Prevents a detached or clamped branch that trains nothing."""
    student, full, _, _ = cases(3, 3, 4)
    student.requires_grad_()
    weights = torch.tensor([0.0, 0.5, 1.0, 0.2]).double()
    assert torch.autograd.gradcheck(lambda z: loss.paper(z, full, None, None, weights), student)
    assert torch.autograd.gradcheck(lambda z: loss.confidence(z, full, None, None, torch.tensor([1, 2])), student)


@pytest.mark.parametrize("log_mass", [-1e-12, -1e-3, -30.0, -200.0])
def test_extreme_masses_stay_finite(log_mass: float) -> None:
    """Prevents a NaN from a model that is certain."""
    student = torch.tensor([[log_mass, -300.0]], requires_grad=True)
    kl = loss.confidence(student, torch.tensor([[-0.5, -3.0]]), None, None, torch.arange(2))
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]


def test_conflict_is_the_harm_of_answers_that_go_along() -> None:
    """Prevents damping of rows that refuse as the reference does, or of the wrong answer's tokens."""
    harm = torch.tensor([0.9, 0.2, 0.8])
    position, answer = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 2, 2])
    label_in_s = torch.tensor([True, False, False, True, True])
    m = loss.conflict(harm, position, answer, label_in_s)
    torch.testing.assert_close(m, torch.tensor([0.9, 0.9, 0.2, 0.0, 0.0]))


def test_conflict_looks_past_what_precedes_the_words() -> None:
    """Prevents a thinking block that the template opens from making a refusal look like help."""
    position, answer = torch.tensor([-2, -1, 0, 1]), torch.zeros(4, dtype=torch.long)
    refuses = torch.tensor([False, False, True, True])
    assert loss.conflict(torch.tensor([0.5]), position, answer, refuses).tolist() == [0] * 4
    assert loss.conflict(torch.tensor([0.5]), position, answer, refuses & (position < 1)).tolist() == [0.5] * 4


def test_the_gate_is_open_before_the_words() -> None:
    """Prevents a gate that fades, or grows, over the tokens that precede an answer's words."""
    student, reference = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).expand(2, 5, 6)
    values = GateConfig().model_dump(exclude={"prefix"})
    early = loss.gate(student, reference, torch.arange(-5, 0), **values)
    torch.testing.assert_close(early, loss.gate(student, reference, torch.zeros(5, dtype=torch.long), **values))


def test_conflict_is_that_of_a_slow_loop() -> None:
    """Prevents mixing answers up, or missing a row that turns away from a refusal after its first token."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 3, 20, loss.OPENING, loss.OPENING + 1, 2, 7]
    position = torch.cat([torch.arange(n) for n in lengths])
    answer = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])
    harm = torch.rand(len(lengths), generator=generator)
    for share in (0.0, 0.5, 0.8, 0.97, 1.0):
        label_in_s = torch.rand(len(answer), generator=generator) < share
        expected = []
        for i, length in enumerate(lengths):
            opening = label_in_s[answer == i][: loss.OPENING]
            expected += [0.0 if opening.all() else float(harm[i])] * length
        assert loss.conflict(harm, position, answer, label_in_s).tolist() == expected
    nothing = torch.zeros(0, dtype=torch.long)
    assert loss.conflict(harm[:0], nothing, nothing, nothing.bool()).shape == (0,)


def test_misaligned_shapes_are_refused() -> None:
    """Prevents a broadcast that looks like a loss."""
    with pytest.raises(ValueError, match="safety tokens"):
        loss.confidence(torch.zeros(3, 2), torch.zeros(1, 2), None, None, torch.arange(2))
    with pytest.raises(ValueError, match="positive weight"):
        loss.confidence(torch.zeros(3, 2), torch.zeros(3, 2), None, None, torch.arange(0))
    with pytest.raises(ValueError, match="weights"):
        loss.paper(torch.zeros(3, 2), torch.zeros(3, 2), None, None, torch.ones(1))
