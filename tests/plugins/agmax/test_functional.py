"""AgMax's terms against formulas written out in float64, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from augury_agmax.functional import TINY, WITHOUT_Q, disagreement, marginal_entropy, normal_init_, q_units


def random_logits(sets: int = 3, images: int = 6, classes: int = 5, scale: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(sets, images, classes, generator=generator, dtype=torch.float64)


def probabilities_by_hand(logits: list[float]) -> list[float]:
    exponentials = [math.exp(z - max(logits)) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def entropy_by_hand(logits: Tensor) -> float:
    rows = [probabilities_by_hand(row) for row in logits.tolist()]
    marginal = [max(sum(column) / len(rows), TINY) for column in zip(*rows, strict=True)]
    return -sum(p * math.log(p) for p in marginal)


@pytest.mark.parametrize(
    ("classes", "units"),
    [(2, 128), (10, 128), (99, 128), (100, 512), (101, 512), (999, 512), (1000, 4096), (9999, 4096), (10_000, 8192)],
)
def test_hidden_units_by_the_number_of_classes(classes: int, units: int) -> None:
    assert q_units(classes) == units


@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_entropy_is_that_of_each_sets_mean_prediction(scale: float) -> None:
    logits = random_logits(scale=scale)
    expected = torch.tensor([entropy_by_hand(one) for one in logits], dtype=torch.float64)
    torch.testing.assert_close(marginal_entropy(logits.softmax(2)), expected, rtol=1e-12, atol=1e-14)
    single = marginal_entropy(logits.float().softmax(2))
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-6)


def test_entropys_gradient_is_the_formula() -> None:
    logits = random_logits().requires_grad_()
    marginal_entropy(logits.softmax(2)).sum().backward()
    with torch.no_grad():
        p = logits.softmax(2)
        # dH/dp_c = -(log p_c + 1) through the mean over N images and the softmax's Jacobian.
        slope = -(p.mean(1, keepdim=True).log() + 1) / logits.shape[1]
        expected = p * (slope - (p * slope).sum(2, keepdim=True))
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-14)


def test_entropy_is_between_certain_and_uniform() -> None:
    certain = torch.zeros(1, 4, 10)
    certain[..., 3] = 1
    assert float(marginal_entropy(certain)) == pytest.approx(0, abs=1e-12)
    each_its_own = torch.eye(10)[None]
    assert float(marginal_entropy(each_its_own)) == pytest.approx(math.log(10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_probabilities_near_zero_have_finite_terms_and_gradients(size: float, dtype: torch.dtype) -> None:
    logits = torch.full((3, 4, 6), -size, dtype=dtype)
    logits[..., 2] = size  # every image the same class: the others' marginal probability is 0 in float32
    logits.requires_grad_()
    p = logits.softmax(2)
    total = disagreement(p[-1], p[:-1]) - marginal_entropy(p).mean()
    total.backward()
    assert total.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # A marginal of 0 counts as epsilon: it adds 5 eps log(1/eps), and pulls at nothing.
    assert -total.item() == pytest.approx(-5 * TINY * math.log(TINY), rel=1e-3)


def test_disagreement_is_the_mean_over_views_images_and_classes() -> None:
    logits = random_logits(sets=3)
    *views, predicted = ([probabilities_by_hand(row) for row in one] for one in logits.tolist())
    gaps = [
        abs(q - p)
        for view in views
        for q_row, p_row in zip(predicted, view, strict=True)
        for q, p in zip(q_row, p_row, strict=True)
    ]
    assert len(gaps) == 2 * 6 * 5
    p = logits.softmax(2)
    assert float(disagreement(p[-1], p[:-1])) == pytest.approx(sum(gaps) / len(gaps), rel=1e-12)


def test_disagreements_gradient_is_the_formula() -> None:
    p = random_logits().softmax(2)
    predicted, views = p[-1].clone().requires_grad_(), p[:-1].clone().requires_grad_()
    disagreement(predicted, views).backward()
    signs = (predicted - views).sign() / views.numel()
    torch.testing.assert_close(predicted.grad, signs.sum(0))
    torch.testing.assert_close(views.grad, -signs)


def test_the_mean_over_processes_is_taken_before_the_logarithm() -> None:
    halves = random_logits(images=6).softmax(2).split(3, 1)
    other = halves[1].mean(1)
    entropy = marginal_entropy(halves[0], lambda mean: (mean + other) / 2)
    torch.testing.assert_close(entropy, marginal_entropy(torch.cat(halves, 1)))


# The agreements without a Q-network.


def agreement_by_hand(name: str, logits: Tensor, other: Tensor) -> float:
    images, classes = logits.shape
    if name == "mse":
        gaps = [(a - b) ** 2 for a, b in zip(logits.flatten().tolist(), other.flatten().tolist(), strict=True)]
        return sum(gaps) / (images * classes)
    total = 0.0
    for row, other_row in zip(logits.tolist(), other.tolist(), strict=True):
        p, q = probabilities_by_hand(row), probabilities_by_hand(other_row)
        for p_c, q_c in zip(p, q, strict=True):
            total += q_c * (math.log(q_c) - math.log(p_c)) if name == "kl" else -p_c * math.log(q_c)
    return total / images if name == "kl" else total / (images * classes)


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (5, 3), (6, 10), (2, 1000)])
@pytest.mark.parametrize("name", ["mse", "kl", "ce"])
def test_agreements_without_a_q_network(name: str, images: int, classes: int) -> None:
    logits, other = random_logits(2, images, classes)
    expected = agreement_by_hand(name, logits, other)
    assert float(WITHOUT_Q[name](logits, other)) == pytest.approx(expected, rel=1e-11)
    assert float(WITHOUT_Q[name](logits.float(), other.float())) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("images", "classes"), [(1, 2), (5, 3), (2, 1000)])
@pytest.mark.parametrize("name", ["mse", "kl", "ce"])
def test_their_gradients_are_the_formulas(name: str, images: int, classes: int) -> None:
    logits, other = (one.requires_grad_() for one in random_logits(2, images, classes).unbind())
    WITHOUT_Q[name](logits, other).backward()
    with torch.no_grad():
        p, q = logits.softmax(1), other.softmax(1)
        log_ratio = q.log() - p.log()
        both = images * classes
        expected = {
            "mse": (2 * (logits - other) / both, -2 * (logits - other) / both),
            # Through the softmax's Jacobian, as in any cross-entropy with soft labels.
            "kl": ((p - q) / images, q * (log_ratio - (q * log_ratio).sum(1, keepdim=True)) / images),
            "ce": (-p * (q.log() - (p * q.log()).sum(1, keepdim=True)) / both, (q - p) / both),
        }[name]
    for found, wanted in zip((logits.grad, other.grad), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["mse", "kl", "ce"])
def test_equal_views_agree(name: str) -> None:
    (logits,) = random_logits(1)
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum() / p.numel()
    expected = {"mse": 0.0, "kl": 0.0, "ce": float(entropy)}[name]
    assert float(WITHOUT_Q[name](logits, logits.clone())) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("name", ["kl", "ce"])
def test_certain_and_opposite_views_are_finite(name: str) -> None:
    # p is 1 for one class and p' for another; the others' probabilities are 0 in float32.
    logits = torch.full((3, 4), -1000.0)
    other = logits.clone()
    logits[:, 0], other[:, 1] = 1000, 1000
    for one in (logits, other):
        one.requires_grad_()
    value = WITHOUT_Q[name](logits, other)
    value.backward()
    assert value.item() == pytest.approx({"kl": 2000, "ce": 2000 / 4}[name])
    for one in (logits, other):
        assert one.grad is not None
        assert one.grad.isfinite().all()


# Initialisation.


@pytest.mark.parametrize("layer", [nn.Linear(200, 300), nn.Conv2d(30, 100, 5), nn.Conv2d(60, 200, 3, bias=False)])
def test_a_layer_starts_normal_with_zero_biases(layer: nn.Linear | nn.Conv2d) -> None:
    normal_init_(layer, 0.2, torch.Generator().manual_seed(1))
    weights = layer.weight.detach().double().flatten()
    # Five standard errors of the mean and of the standard deviation.
    error = 5 * 0.2 / math.sqrt(len(weights))
    assert abs(weights.mean()) < error
    assert abs(weights.std() - 0.2) < error
    assert (weights.abs() < 0.2).double().mean() == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)
    assert layer.bias is None or not layer.bias.any()
    assert layer.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layout_and_type_do_not_change_what_is_drawn(dtype: torch.dtype) -> None:
    plain, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3).to(dtype, memory_format=torch.channels_last)
    for layer in (plain, other):
        normal_init_(layer, 0.2, torch.Generator().manual_seed(1))
    assert other.weight.dtype == dtype
    assert other.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.weight.to(dtype), other.weight)
    normal_init_(plain, 0.2, torch.Generator().manual_seed(2))
    assert not torch.equal(plain.weight.to(dtype), other.weight)
