"""The cooled divergence against its formula in float64, and against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from augury_distill.functional import divergences

SHAPES = [(1, 2), (7, 10), (3, 1), (32, 100)]


def drawn(shape: tuple[int, int], seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_formula(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """T^2 sum_c p_c log(p_c / q_c), p and q the softmax of logits / T."""
    p = (teacher / t).exp() / (teacher / t).exp().sum(1, keepdim=True)
    q = (student / t).exp() / (student / t).exp().sum(1, keepdim=True)
    return t**2 * (p * (p / q).log()).sum(1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("t", [0.5, 1.0, 4.0, 20.0])
def test_it_is_the_formula_and_so_is_its_gradient(shape: tuple[int, int], t: float) -> None:
    student, other, teacher = drawn(shape, 0).requires_grad_(), drawn(shape, 0).requires_grad_(), drawn(shape, 1)
    found, expected = divergences(student, teacher, t), by_formula(other, teacher, t)
    assert found.shape == shape[:1]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    weights = torch.linspace(1, 2, len(student), dtype=torch.float64)
    (found @ weights).backward()
    (expected @ weights).backward()
    torch.testing.assert_close(student.grad, other.grad, rtol=1e-8, atol=1e-12)
    # T (q - p), as the docstring says.
    closed = t * ((other / t).softmax(1) - (teacher / t).softmax(1)) * weights[:, None]
    torch.testing.assert_close(student.grad, closed.detach(), rtol=1e-8, atol=1e-12)


def test_it_is_torchs_kl_div() -> None:
    student, teacher, t = drawn((9, 5), 2), drawn((9, 5), 3), 4.0
    expected = F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean") * t * t
    torch.testing.assert_close(divergences(student, teacher, t).mean(), expected)


def test_at_high_temperature_it_compares_centred_logits() -> None:
    """Section 2.1 of the paper: T^2 KL -> 1 / (2 C) sum_c (z_c - v_c)^2 for logits of mean zero."""
    student, teacher = (z - z.mean(1, keepdim=True) for z in (drawn((6, 8), 4, 1.0), drawn((6, 8), 5, 1.0)))
    expected = (student - teacher).square().sum(1) / (2 * 8)
    torch.testing.assert_close(divergences(student, teacher, 1e4), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_extreme_logits_stay_finite_in_float32(scale: float) -> None:
    student = drawn((16, 10), 0, scale).float().requires_grad_()
    found = divergences(student, drawn((16, 10), 1, scale).float(), 4.0)
    found.mean().backward()
    assert found.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
