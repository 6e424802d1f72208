"""The focal loss and the class-balanced weights against their formulas, in float64, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from augury.criterion import row_losses
from augury_focal.functional import class_balanced_weights, focal_losses

# rows, labels a row is mixed from, classes
SHAPES = [(1, 1, 2), (7, 1, 5), (5, 3, 4), (16, 2, 100)]


def drawn(rows: int, k: int, classes: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A batch's labels with all that goes with them, and logits."""
    g = torch.Generator().manual_seed(rows + k)
    return {
        "logits": (3 * torch.randn(rows, classes, generator=g, dtype=dtype)).requires_grad_(),
        "labels": torch.randint(classes, (rows, k), generator=g),
        "shares": torch.rand(rows, k, generator=g, dtype=dtype).softmax(1),
        "smoothing": torch.rand(rows, k, generator=g, dtype=dtype),
        "label_weights": 2 * torch.rand(rows, k, generator=g, dtype=dtype),
        "class_logits": (3 * torch.randn(rows, k, classes, generator=g, dtype=dtype)).requires_grad_(),
    }


def by_loop(given: dict[str, Tensor], gamma: float, conditional: bool) -> Tensor:
    """The card's formula, label by label."""
    losses = []
    for i, logits in enumerate(given["logits"]):
        u, total = logits.exp() / logits.exp().sum(), torch.zeros((), dtype=torch.float64)
        for k, label in enumerate(given["labels"][i].tolist()):
            own = given["class_logits"][i, k].exp() if conditional else u
            p, e = own[label] / own.sum(), given["smoothing"][i, k]
            loss = -(1 - e) * (1 - p) ** gamma * p.log() - e * u.log().mean()
            total = total + given["shares"][i, k] * given["label_weights"][i, k] * loss
        losses.append(total)
    return torch.stack(losses)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("rows", "k", "classes"), SHAPES)
def test_row_losses_and_gradients_are_the_formula(
    rows: int, k: int, classes: int, gamma: float, conditional: bool
) -> None:
    given = drawn(rows, k, classes)
    arguments = given if conditional else {**given, "class_logits": None}
    losses, expected = focal_losses(**arguments, gamma=gamma), by_loop(given, gamma, conditional)
    assert losses.shape == (rows,)
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-10)
    leaves = [given["logits"], *([given["class_logits"]] if conditional else [])]
    torch.testing.assert_close(
        torch.autograd.grad(losses.square().sum(), leaves),
        torch.autograd.grad(expected.square().sum(), leaves),
        atol=1e-10,
        rtol=1e-8,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("rows", "k", "classes"), SHAPES)
def test_gamma_of_0_is_cores_criterion_to_the_last_bit(
    rows: int, k: int, classes: int, conditional: bool, dtype: torch.dtype
) -> None:
    given: dict[str, Tensor | None] = {**drawn(rows, k, classes, dtype)}
    leaves = [given["logits"], given["class_logits"]] if conditional else [given["logits"]]
    if not conditional:
        given["class_logits"] = None
    ours, cores = focal_losses(**given, gamma=0.0), row_losses(**given)
    assert torch.equal(ours, cores)
    for a, b in zip(torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(cores.sum(), leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("gap", [0.0, 20.0, 200.0, 1e30, -200.0, -1e30])
def test_extreme_logits_have_finite_losses_and_gradients(gamma: float, gap: float) -> None:
    logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    ones, zeros = torch.ones(1, 1), torch.zeros(1, 1)
    loss = focal_losses(logits, zeros.long(), ones, zeros, ones, gamma)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    assert (loss >= 0).all()
    if gap <= -200:
        # A confident error is not damped.
        torch.testing.assert_close(loss, torch.tensor([-gap + torch.log(torch.tensor(2.0))]), rtol=1e-5, atol=0)


def test_it_is_the_papers_focal_loss_without_mixing_and_smoothing() -> None:
    # Lin et al., section 3: with gamma = 2, a sample at p = 0.9 has 100 times less loss than with cross-entropy.
    logits = torch.tensor([[0.9, 0.1], [0.5, 0.5]], dtype=torch.float64).log()
    ones, labels = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    plain, focal = (focal_losses(logits, labels, ones, 0 * ones, ones, gamma) for gamma in (0.0, 2.0))
    torch.testing.assert_close(plain / focal, torch.tensor([100.0, 4.0], dtype=torch.float64))


def test_the_gradient_passes_gradcheck() -> None:
    given = drawn(4, 2, 3)
    rest = {name: value for name, value in given.items() if name not in ("logits", "class_logits")}

    def losses(logits: Tensor, class_logits: Tensor) -> Tensor:
        return focal_losses(logits=logits, class_logits=class_logits, **rest, gamma=1.5)

    assert torch.autograd.gradcheck(losses, (given["logits"], given["class_logits"]))


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.9999])
def test_class_weights_are_the_formula(beta: float) -> None:
    counts = [1, 2, 10, 500, 5000]
    raw = [(1 - beta) / (1 - beta**n) for n in counts]
    weights = class_balanced_weights(counts, beta)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([5 * w / sum(raw) for w in raw]), rtol=1e-6, atol=0)
    assert float(weights.sum()) == pytest.approx(5, rel=1e-6)


def test_beta_of_0_weighs_all_alike_and_beta_near_1_by_inverse_counts() -> None:
    assert torch.equal(class_balanced_weights([3, 1000, 7], 0.0), torch.ones(3))
    inverse = torch.tensor([1 / 3, 1 / 1000, 1 / 7])
    expected = 3 * inverse / inverse.sum()
    # 1 - beta^n by itself would lose its digits here.
    torch.testing.assert_close(class_balanced_weights([3, 1000, 7], 1 - 2**-53), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_a_class_without_images_takes_nothing_from_the_others(beta: float) -> None:
    weights = class_balanced_weights([0, 5, 0, 80], beta)
    assert torch.equal(weights[[0, 2]], torch.zeros(2))
    assert torch.equal(weights[[1, 3]], class_balanced_weights([5, 80], beta))
