"""Mixup's pure functions against scipy's Beta distribution, formulas in float64 and torchvision's MixUp."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2

from augury_mixup.functional import blend, sample_lambda

# rows, channels, height, width
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 6), (5, 1, 7, 5), (16, 3, 8, 8)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 3.0, 100.0])
def test_lambda_is_beta(alpha: float) -> None:
    drawn = sample_lambda(20_000, alpha, generator())
    assert (drawn.shape, drawn.dtype) == ((20_000,), torch.float64)
    assert stats.kstest(drawn.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 1e6, 1e300])
def test_lambda_of_extreme_concentrations(alpha: float) -> None:
    drawn = sample_lambda(5000, alpha, generator())
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
    # Nearly all are 0 or 1, or all are one half.
    assert float((drawn - 0.5).abs().mean()) == pytest.approx(0.5 if alpha < 1 else 0, abs=0.02)


def test_lambda_has_torchvisions_distribution() -> None:
    theirs = v2.MixUp(alpha=0.4, num_classes=2)
    torch.manual_seed(1)
    drawn = [theirs.make_params([])["lam"] for _ in range(5000)]
    assert stats.ks_2samp(sample_lambda(5000, 0.4, generator()).numpy(), drawn).pvalue > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "channels", "height", "width"), SHAPES)
def test_blend_is_the_weighted_sum(rows: int, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
    images = torch.randn(rows, channels, height, width, generator=generator(), dtype=torch.float64).to(dtype)
    partners = torch.randperm(rows, generator=generator())
    own = sample_lambda(rows, 1.0, generator())
    shares = torch.stack([own, 1 - own], 1).float()
    before = images.clone()
    mixed = blend(images, partners, shares)
    assert torch.equal(images, before)
    assert mixed.dtype == dtype
    for row in range(rows):
        a, b = shares[row].double().tolist()
        expected = a * before[row].double() + b * before[partners[row]].double()
        tolerance = 1e-6 if dtype == torch.float32 else 1e-14
        torch.testing.assert_close(mixed[row].double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("own", [0.0, 0.3, 0.8125, 1.0])
def test_blend_and_shares_are_torchvisions_given_the_same_lambda(own: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.randn(6, 3, 5, 7, generator=generator()), torch.tensor([0, 3, 2, 3, 1, 0])
    theirs = v2.MixUp(alpha=1.0, num_classes=4)
    monkeypatch.setattr(theirs, "make_params", lambda _: {"lam": own})
    expected, targets = theirs(images.clone(), labels)
    partners = torch.arange(6).roll(1)
    shares = torch.tensor([[own, 1 - own]], dtype=torch.float64).expand(6, 2).float()
    assert torch.equal(blend(images, partners, shares), expected)
    mixed = torch.zeros(6, 4).scatter_add_(1, torch.stack([labels, labels[partners]], 1), shares)
    assert torch.equal(mixed, targets)


def test_nothing_asks_for_a_number_of_the_device() -> None:
    g = generator()
    with FakeTensorMode():
        own = sample_lambda(6, 0.2, g)
        images = torch.zeros(6, 3, 8, 9)
        mixed = blend(images, torch.zeros(6, dtype=torch.int64), torch.stack([own, 1 - own], 1).float())
        assert mixed.shape == images.shape
