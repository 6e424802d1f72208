"""The Jensen-Shannon divergence against its formula in float64, and against scipy's."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from augury_augmix.functional import jensen_shannon

# versions, images, classes
SHAPES = [(3, 5, 10), (3, 1, 2), (2, 7, 4), (1, 3, 5), (4, 2, 1), (3, 64, 100)]


def by_formula(logits: Tensor) -> Tensor:
    """1/V sum_v KL(p_v || M), for each image, class by class."""
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    mean = sum(p.unbind(0)) / len(p)
    return sum((one * (one / mean).log()).sum(-1) for one in p.unbind(0)) / len(p)


def drawn(shape: tuple[int, int, int], scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_formula_and_so_is_its_gradient(shape: tuple[int, int, int]) -> None:
    logits, others = (drawn(shape).requires_grad_() for _ in range(2))
    found, expected = jensen_shannon(logits), by_formula(others)
    assert found.shape == shape[1:2]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
    weights = torch.linspace(1, 2, shape[1], dtype=torch.float64)
    (found @ weights).backward()
    (expected @ weights).backward()
    torch.testing.assert_close(logits.grad, others.grad, rtol=1e-9, atol=1e-14)
    torch.autograd.gradcheck(jensen_shannon, drawn((3, 2, 4)).requires_grad_())


def test_it_is_scipys_for_two_versions() -> None:
    logits = drawn((2, 20, 6))
    p, q = logits.softmax(-1).numpy()
    expected = torch.from_numpy(jensenshannon(p, q, axis=1) ** 2)
    torch.testing.assert_close(jensen_shannon(logits), expected, rtol=1e-9, atol=1e-14)


def test_it_is_the_official_programs_where_that_clamps_nothing() -> None:
    logits = drawn((3, 20, 6))
    p = logits.softmax(-1)
    log_mean = p.mean(0).clamp(1e-7, 1).log()
    kl = torch.nn.functional.kl_div
    official = sum(kl(log_mean, one, reduction="batchmean") for one in p.unbind(0)) / 3
    torch.testing.assert_close(jensen_shannon(logits).mean(), official, rtol=1e-10, atol=0)


def test_it_lies_between_0_and_log_v() -> None:
    same = drawn((1, 8, 10)).expand(3, -1, -1)
    torch.testing.assert_close(jensen_shannon(same), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-14)
    apart = 1e4 * torch.eye(3, dtype=torch.float64)[:, None, :]
    torch.testing.assert_close(jensen_shannon(apart), torch.full((1,), math.log(3), dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e30])
def test_extreme_logits_stay_finite_in_float32(scale: float) -> None:
    logits = drawn((3, 16, 10), scale, torch.float32).requires_grad_()
    found = jensen_shannon(logits)
    assert (found >= -1e-6).all()
    assert (found <= math.log(3) + 1e-5).all()
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
