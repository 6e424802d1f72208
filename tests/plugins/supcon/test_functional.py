"""The contrastive loss against equation 2 written out in float64, gradients included, and the queue."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from augury_supcon.functional import push, supcon_losses

D, C = 5, 4


def unit(rows: int, seed: int) -> Tensor:
    """Rows x D random directions."""
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, D, dtype=torch.float64, generator=g), dim=1)


def classes(rows: int, seed: int) -> Tensor:
    return torch.randint(C, (rows,), generator=torch.Generator().manual_seed(seed))


def one_hot(labels: Tensor) -> Tensor:
    return F.one_hot(labels, C).double()


def equation_2(z: Tensor, labels: list[int], anchor: int, temperature: float) -> Tensor:
    """L_out of one anchor: all rows of z but itself are its contrasts."""
    others = [a for a in range(len(z)) if a != anchor]
    denominator = sum(torch.exp(z[anchor] @ z[a] / temperature) for a in others)
    positives = [p for p in others if labels[p] == labels[anchor]]
    terms = [torch.log(torch.exp(z[anchor] @ z[p] / temperature) / denominator) for p in positives]
    return -sum(terms) / len(positives) if positives else z.sum() * 0


def mixed_equation(z: Tensor, soft: Tensor, anchor: int, temperature: float) -> Tensor:
    """The same, each other row a positive with the probability that a label drawn from both is the same."""
    others = [a for a in range(len(z)) if a != anchor]
    denominator = sum(torch.exp(z[anchor] @ z[a] / temperature) for a in others)
    total, found = 0.0, z.sum() * 0
    for p in others:
        same = sum(float(soft[anchor, c] * soft[p, c]) for c in range(C))
        total += same
        found = found - same * torch.log(torch.exp(z[anchor] @ z[p] / temperature) / denominator)
    return found / total if total else z.sum() * 0


@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
@pytest.mark.parametrize("rows", [2, 3, 17])
def test_it_is_the_papers_equation(rows: int, temperature: float) -> None:
    labels = classes(rows, rows)
    ours, theirs = unit(rows, 1).requires_grad_(), unit(rows, 1).requires_grad_()
    losses = supcon_losses(ours, one_hot(labels), ours, one_hot(labels), torch.arange(rows), temperature)
    expected = torch.stack([equation_2(theirs, labels.tolist(), i, temperature) for i in range(rows)])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    weights = torch.linspace(1, 2, rows, dtype=torch.float64)
    (weights * losses).sum().backward()
    (weights * expected).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


def test_mixed_rows_are_positives_by_the_probability_of_one_class() -> None:
    rows = 9
    soft = torch.rand(rows, C, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    soft = soft / soft.sum(1, keepdim=True)
    ours, theirs = unit(rows, 3).requires_grad_(), unit(rows, 3).requires_grad_()
    losses = supcon_losses(ours, soft, ours, soft, torch.arange(rows), 0.3)
    expected = torch.stack([mixed_equation(theirs, soft, i, 0.3) for i in range(rows)])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    losses.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


def test_anchors_may_be_any_of_the_contrasts() -> None:
    labels, z = classes(12, 4), unit(12, 5)
    own = torch.tensor([7, 2, 11])
    losses = supcon_losses(z[own], one_hot(labels)[own], z, one_hot(labels), own, 0.1)
    expected = torch.stack([equation_2(z, labels.tolist(), i, 0.1) for i in own.tolist()])
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)


def test_a_contrast_without_a_class_is_neither_positive_nor_negative() -> None:
    labels, z = classes(6, 6), unit(6, 7)
    alone = supcon_losses(z, one_hot(labels), z, one_hot(labels), torch.arange(6), 0.1)
    more = torch.cat([z, torch.zeros(4, D, dtype=torch.float64), unit(2, 8)])
    targets = torch.cat([one_hot(labels), torch.zeros(6, C, dtype=torch.float64)])
    assert torch.equal(supcon_losses(z, one_hot(labels), more, targets, torch.arange(6), 0.1), alone)


def test_an_anchor_without_a_positive_has_no_loss_and_no_gradient() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    z = unit(4, 9).requires_grad_()
    losses = supcon_losses(z, one_hot(labels), z, one_hot(labels), torch.arange(4), 0.1)
    assert (losses == 0).tolist() == [True, False, True, False]
    (gradient,) = torch.autograd.grad(losses[0] + losses[2], z)
    assert not gradient.any()
    alone = unit(1, 9).requires_grad_()
    lonely = supcon_losses(alone, one_hot(labels[:1]), alone, one_hot(labels[:1]), torch.tensor([0]), 0.1)
    (gradient,) = torch.autograd.grad(lonely.sum(), alone)
    assert lonely.tolist() == [0]
    assert not gradient.any()


def test_float32_with_a_small_temperature_stays_finite() -> None:
    z, labels = unit(40, 10).float().requires_grad_(), classes(40, 11)
    targets = one_hot(labels).float()
    losses = supcon_losses(z, targets, z, targets, torch.arange(40), 0.002)
    losses.mean().backward()
    assert losses.isfinite().all()
    assert z.grad.isfinite().all()
    assert losses.dtype == torch.float32
    # All alike: each other row is as near, so each has the same share.
    same = torch.ones(6, D) / math.sqrt(D)
    losses = supcon_losses(same, targets[:6], same, targets[:6], torch.arange(6), 0.1)
    assert all(abs(float(loss) - math.log(5)) < 1e-5 or loss == 0 for loss in losses)


@pytest.mark.parametrize("size", [1, 4, 6, 10])
def test_a_queue_keeps_the_newest(size: int) -> None:
    queue, seen = torch.zeros(size, 2), torch.zeros(size, 2)
    for number in range(4):
        rows = torch.rand(number + 3, 2, dtype=torch.float64) + 1
        seen = torch.cat([seen, rows.float()])
        place = queue.data_ptr()
        push(queue, rows)
        assert torch.equal(queue, seen[-size:])
        assert queue.data_ptr() == place
