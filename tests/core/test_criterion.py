"""The default criterion against its formula in float64, term by term."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.criterion import Criterion, row_losses

ROWS, K, CLASSES = 5, 3, 4
Labelled = tuple[Tensor, Tensor, Tensor]


def labelled() -> Labelled:
    """Labels, weights and smoothing; a class may come twice in a row."""
    weights = torch.rand(ROWS, K, dtype=torch.float64)
    return (
        torch.randint(CLASSES, (ROWS, K)),
        weights / weights.sum(1, keepdim=True),
        torch.rand(ROWS, K, dtype=torch.float64),
    )


def log_p(logits: Tensor) -> list[float]:
    """Logarithms of the softmax of C logits, by hand."""
    total = sum(math.exp(z) for z in logits.tolist())
    return [z - math.log(total) for z in logits.tolist()]


@pytest.mark.parametrize("conditional", [False, True])
def test_row_losses_are_the_formula(conditional: bool) -> None:
    labels, weights, smoothing = labelled()
    logits = 3 * torch.randn(ROWS, CLASSES, dtype=torch.float64)
    class_logits = 3 * torch.randn(ROWS, K, CLASSES, dtype=torch.float64) if conditional else None
    found = row_losses(logits, labels, weights, smoothing, class_logits)
    assert found.shape == (ROWS,)
    for m in range(ROWS):
        log_u = log_p(logits[m])
        expected = 0.0
        for k in range(K):
            of_label = log_p(class_logits[m, k]) if class_logits is not None else log_u
            e = float(smoothing[m, k])
            expected -= float(weights[m, k]) * ((1 - e) * of_label[int(labels[m, k])] + e * sum(log_u) / CLASSES)
        assert float(found[m]) == pytest.approx(expected, rel=1e-12)


def test_plain_labels_are_torchs_cross_entropy_with_its_smoothing() -> None:
    logits, labels = torch.randn(ROWS, CLASSES), torch.randint(CLASSES, (ROWS,))
    for smoothing in (0.0, 0.1, 1.0):
        found = row_losses(logits, labels[:, None], torch.ones(ROWS, 1), torch.full((ROWS, 1), smoothing))
        expected = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        torch.testing.assert_close(found, expected)


def test_mixed_labels_are_torchs_cross_entropy_with_soft_targets() -> None:
    labels, weights, _ = labelled()
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    targets = (F.one_hot(labels, CLASSES) * weights[:, :, None]).sum(1)
    found = row_losses(logits, labels, weights, torch.zeros(ROWS, K))
    torch.testing.assert_close(found, F.cross_entropy(logits, targets, reduction="none"))


def test_smoothing_is_no_part_of_conditional_logits() -> None:
    """Where all is smoothing, class_logits change nothing and get no gradient."""
    labels, weights, _ = labelled()
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    class_logits = torch.randn(ROWS, K, CLASSES, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(ROWS, K, dtype=torch.float64)
    found = row_losses(logits, labels, weights, ones, class_logits)
    torch.testing.assert_close(found.detach(), row_losses(logits, labels, weights, ones))
    found.sum().backward()
    assert not class_logits.grad.any()


def test_gradients_are_right_in_every_input() -> None:
    labels, weights, smoothing = labelled()
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64, requires_grad=True)
    class_logits = torch.randn(ROWS, K, CLASSES, dtype=torch.float64, requires_grad=True)
    inputs = (logits, labels, weights.requires_grad_(), smoothing.requires_grad_(), class_logits)
    torch.autograd.gradcheck(row_losses, inputs)


def class_weighed() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A weight of each class C, then labels, shares and the weights of the labels, one of which comes twice."""
    weights = torch.rand(CLASSES, dtype=torch.float64) + 0.25
    labels, shares, _ = labelled()
    labels[0] = torch.tensor([2, 1, 2])
    return weights, labels, shares, weights[labels]


def test_label_weights_are_torchs_class_weights_before_its_mean() -> None:
    weights, labels, shares, label_weights = class_weighed()
    targets = (F.one_hot(labels, CLASSES) * shares[:, :, None]).sum(1)
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64, requires_grad=True)
    found = row_losses(logits, labels, shares, torch.zeros(ROWS, K), None, label_weights)
    expected = F.cross_entropy(logits, targets, weight=weights, reduction="none")
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.mean(), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.mean(), logits)[0])
    again = torch.randn(ROWS, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(
        row_losses(again, labels, shares, torch.zeros(ROWS, K), None, torch.ones(ROWS, K)),
        row_losses(again, labels, shares, torch.zeros(ROWS, K)),
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_a_labels_weight_counts_with_smoothing_and_conditional_logits(conditional: bool) -> None:
    """sum_k s_k w_k [-(1 - e_k) log p_k - e_k mean_c log u_c], written out; the label's own weight is that of both."""
    _, labels, shares, label_weights = class_weighed()
    smoothing = torch.rand(ROWS, K, dtype=torch.float64)
    logits = 3 * torch.randn(ROWS, CLASSES, dtype=torch.float64)
    class_logits = 3 * torch.randn(ROWS, K, CLASSES, dtype=torch.float64) if conditional else None
    found = row_losses(logits, labels, shares, smoothing, class_logits, label_weights)
    for m in range(ROWS):
        log_u, expected = log_p(logits[m]), 0.0
        for k in range(K):
            of_label = log_u if class_logits is None else log_p(class_logits[m, k])
            e, weight = float(smoothing[m, k]), float(shares[m, k] * label_weights[m, k])
            expected += weight * (-(1 - e) * of_label[int(labels[m, k])] - e * sum(log_u) / CLASSES)
        assert float(found[m]) == pytest.approx(expected, rel=1e-12)


def test_gradients_with_label_weights_are_right_in_every_input() -> None:
    _, labels, shares, label_weights = class_weighed()
    logits = torch.randn(ROWS, CLASSES, dtype=torch.float64, requires_grad=True)
    class_logits = torch.randn(ROWS, K, CLASSES, dtype=torch.float64, requires_grad=True)
    smoothing = torch.rand(ROWS, K, dtype=torch.float64, requires_grad=True)
    floats = (logits, shares.requires_grad_(), smoothing, class_logits, label_weights.requires_grad_())
    torch.autograd.gradcheck(lambda z, s, e, c, w: row_losses(z, labels, s, e, c, w), floats)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    found = row_losses(logits, torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1), torch.zeros(2, 1))
    assert found.tolist() == [0.0, 2e4]
    found.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("conditional", [False, True])
def test_the_criterion_is_the_mean_of_weighted_rows(conditional: bool) -> None:
    labels, weights, smoothing = (t if t.dtype == torch.int64 else t.float() for t in labelled())
    batch = Batch.of(torch.zeros(ROWS, 1, 1, 1), torch.zeros(ROWS))
    batch.labels, batch.shares, batch.smoothing = labels, weights, smoothing
    batch.row_weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])
    output = ModelOutput(torch.zeros(ROWS, 2), torch.randn(ROWS, CLASSES))
    if conditional:
        output.class_logits = torch.randn(ROWS, K, CLASSES)
    batch.label_weights = torch.rand(ROWS, K) + 0.5
    rows = row_losses(output.logits, labels, weights, smoothing, output.class_logits, batch.label_weights)
    found = Criterion().compute_loss(batch, output)
    torch.testing.assert_close(output.row_losses, rows)
    # The divisor is the number of rows, not the sum of their weights.
    torch.testing.assert_close(found, (batch.row_weights * rows).sum() / ROWS)
