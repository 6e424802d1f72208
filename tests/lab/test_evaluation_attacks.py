"""FGSM and PGD against formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from augury.errors import UsageError
from augury_lab.evaluation.attacks import PGD_STEPS, ascent, check_epsilons, fgsm, pgd

CLASSES, SHAPE = 4, (3, 5, 5)
MEAN, STD = torch.tensor([0.3, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.4, 0.1])[:, None, None]


class Linear:
    """Logits W normalise(x) + b, in float32, and the gradient of its cross-entropy by the formula in float64."""

    def __init__(self, scale: float = 1.0) -> None:
        made = torch.Generator().manual_seed(0)
        self.weights = scale * torch.randn(CLASSES, *SHAPE, generator=made) / 5
        self.bias = torch.randn(CLASSES, generator=made) / 5

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        shown = (images - MEAN.to(images.dtype)) / STD.to(images.dtype)
        return torch.einsum("nchw,kchw->nk", shown, self.weights.to(images.dtype)) + self.bias.to(images.dtype)

    def gradient(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """d CE / d x = sum_k p_k (W_k - W_y) / std, in which nothing is lost where p_y is nearly 1."""
        p, weights = self(images.double()).softmax(1), self.weights.double() / STD.double()
        return torch.einsum("nk,nkchw->nchw", p, weights[None] - weights[labels][:, None])


def batch(rows: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.rand(rows, *SHAPE, generator=made), torch.randint(CLASSES, (rows,), generator=made)


def test_signs_are_those_of_the_cross_entropy_s_gradient_for_pixels() -> None:
    model, (images, labels) = Linear(), batch()
    signs, answers = ascent(model, images, labels)
    assert torch.equal(signs.double(), model.gradient(images, labels).sign())
    assert torch.equal(answers, model(images).argmax(1))
    assert not images.requires_grad


def test_a_sure_network_is_attacked_all_the_same() -> None:
    # Where the right class has all of float32's probability, the plain cross-entropy has no gradient.
    model, (images, _) = Linear(scale=40), batch()
    labels = model(images).argmax(1)
    pixels = images.clone().requires_grad_()
    nn.functional.cross_entropy(model(pixels), labels, reduction="none").sum().backward()
    assert pixels.grad is not None
    idle = (pixels.grad == 0).flatten(1).all(1)
    assert idle.sum() > 10
    signs, _ = ascent(model, images, labels)
    assert torch.equal(signs.double(), model.gradient(images, labels).sign())


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.1, 1.0])
def test_fgsm_is_one_step_along_the_signs_within_0_and_1(epsilon: float) -> None:
    model, (images, labels) = Linear(), batch()
    found = fgsm(images, ascent(model, images, labels)[0], epsilon)
    expected = (images.double() + epsilon * model.gradient(images, labels).sign()).clamp(0, 1)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_no_change_within_epsilon_is_worse_for_two_classes_of_a_linear_model() -> None:
    # There the worst is known: every pixel goes along the weights' difference as far as it may.
    model, (images, labels) = Linear(), batch()
    model.weights, model.bias, labels = model.weights[:2], model.bias[:2], labels % 2
    along = (model.weights[1 - labels] - model.weights[labels]).sign()
    worst = (images + 0.03 * along).clamp(0, 1)
    found = fgsm(images, ascent(model, images, labels)[0], 0.03)
    torch.testing.assert_close(found, worst)
    projected, _ = pgd(model, images, labels, 0.03, torch.Generator().manual_seed(0))
    torch.testing.assert_close(projected, worst, atol=1e-6, rtol=0)


def test_pgd_follows_its_formula() -> None:
    model, (images, labels) = Linear(), batch()
    found, right = pgd(model, images, labels, 0.05, torch.Generator().manual_seed(7), steps=3, step=0.02)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(7)).double()
    x = images.double()
    low, high = (x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1)
    at = (x + 0.05 * (2 * noise - 1)).clamp(0, 1)
    seen = [x, at]
    for _ in range(3):
        at = torch.minimum(torch.maximum(at + 0.02 * model.gradient(at, labels).sign(), low), high)
        seen.append(at)
    torch.testing.assert_close(found.double(), at, atol=1e-6, rtol=0)
    answers = torch.stack([model(one).argmax(1) == labels for one in seen])
    assert torch.equal(right, answers.all(0))


def test_pgd_stays_within_epsilon_and_0_and_1() -> None:
    model, (images, labels) = Linear(), batch()
    images[:8] = 0
    images[8:16] = 1
    found, _ = pgd(model, images, labels, 0.1, torch.Generator().manual_seed(0))
    assert (found - images).abs().max() <= 0.1 + 1e-6
    assert (found - images).abs().max() > 0.099
    assert found.min() >= 0
    assert found.max() <= 1


def test_pgd_with_an_epsilon_of_0_is_the_clean_accuracy() -> None:
    model, (images, labels) = Linear(), batch()
    found, right = pgd(model, images, labels, 0.0, torch.Generator(), steps=0)
    assert torch.equal(found, images)
    assert torch.equal(right, model(images).argmax(1) == labels)
    assert 0 < right.sum() < len(right)


@pytest.mark.parametrize("mistaken_at", [0, 1, 2, 3, None])
def test_one_mistake_on_the_way_is_enough(mistaken_at: int | None) -> None:
    calls = 0

    def network(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        sign = -1.0 if calls == mistaken_at else 1.0
        calls += 1
        return torch.stack([sign + 0 * images.sum((1, 2, 3)), torch.zeros(len(images))], 1)

    labels = torch.zeros(3, dtype=torch.int64)
    _, right = pgd(network, torch.rand(3, 1, 2, 2), labels, 0.1, torch.Generator().manual_seed(0), steps=2)
    # The clean images, the random start, and after each of two steps.
    assert calls == 4
    assert right.tolist() == [mistaken_at is None] * 3


class Bent(nn.Module):
    """A network whose loss bends, so that one step is not the best."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(75, 40), nn.Tanh(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, CLASSES)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 3 * self.layers(2 * images - 1)


def test_pgd_is_stronger_than_fgsm_where_the_loss_bends() -> None:
    model, (images, _) = Bent().requires_grad_(False), batch(400)
    labels = model(images).argmax(1)
    one_step = fgsm(images, ascent(model, images, labels)[0], 0.06)
    losses = [
        nn.functional.cross_entropy(model(found), labels)
        for found in (images, one_step, pgd(model, images, labels, 0.06, torch.Generator().manual_seed(0))[0])
    ]
    assert losses[0] < losses[1] < losses[2]
    assert PGD_STEPS == 20


def test_epsilons_are_in_order_and_once_each() -> None:
    assert check_epsilons([4, 1, 4, 0.5, 0], "--fgsm") == [0, 0.5, 1, 4]
    assert check_epsilons([], "--fgsm") == []


@pytest.mark.parametrize("epsilon", [-1.0, -0.001, 256.0, float("nan"), float("inf")])
def test_other_epsilons_are_refused(epsilon: float) -> None:
    with pytest.raises(UsageError, match=r"--pgd: an epsilon must be from 0 to 255"):
        check_epsilons([1, epsilon], "--pgd")
