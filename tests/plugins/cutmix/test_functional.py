"""CutMix's pure functions against loops, exact sums over all boxes, and torchvision's CutMix."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import v2

from augury_cutmix.functional import paste, pixel_shares, sample_boxes, sample_lambda

# rows, channels, height, width
SHAPES = [(1, 1, 1, 1), (6, 1, 1, 7), (7, 3, 6, 1), (2, 3, 2, 2), (5, 1, 7, 5), (16, 3, 9, 13), (64, 3, 32, 32)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(rows: int, height: int, width: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Partners and boxes of one batch, a box for each row."""
    g = generator(rows)
    return torch.randperm(rows, generator=g), sample_boxes(sample_lambda(rows, alpha, g), height, width, g)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 3.0])
def test_lambda_is_beta(alpha: float) -> None:
    lambdas = sample_lambda(20_000, alpha, generator())
    assert (lambdas.shape, lambdas.dtype) == ((20_000,), torch.float64)
    assert stats.kstest(lambdas.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 1e6, 1e300])
def test_lambda_of_extreme_concentrations(alpha: float) -> None:
    lambdas = sample_lambda(5000, alpha, generator())
    assert ((lambdas >= 0) & (lambdas <= 1)).all()
    assert float(lambdas.mean()) == pytest.approx(0.5, abs=0.03)
    # Nearly all are 0 or 1, or all are one half.
    assert float((lambdas - 0.5).abs().mean()) == pytest.approx(0.5 if alpha < 1 else 0, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (2, 2), (9, 13), (32, 32)])
def test_boxes_are_those_of_the_official_code(height: int, width: int) -> None:
    lambdas, n = sample_lambda(3000, 0.5, generator()), 3000
    boxes = sample_boxes(lambdas, height, width, generator(1))
    g = generator(1)
    y, x = (torch.randint(side, (n,), generator=g).tolist() for side in (height, width))
    for box, centre_y, centre_x, own in zip(boxes.tolist(), y, x, lambdas.tolist(), strict=True):
        cut_h, cut_w = int(height * math.sqrt(1 - own)), int(width * math.sqrt(1 - own))
        edges = [centre_y - cut_h // 2, centre_y + cut_h // 2, centre_x - cut_w // 2, centre_x + cut_w // 2]
        limits = [height, height, width, width]
        assert box == [min(max(edge, 0), limit) for edge, limit in zip(edges, limits, strict=True)]


@pytest.mark.parametrize("below_one", [0.0, 2**-53, 1e-9])
def test_lambda_next_to_1_leaves_the_box_empty(below_one: float) -> None:
    boxes = sample_boxes(torch.full((500,), 1 - below_one, dtype=torch.float64), 32, 9, generator())
    assert torch.equal(pixel_shares(boxes, 32, 9), torch.tensor([[1.0, 0.0]]).expand(500, 2))
    images = torch.randn(500, 1, 32, 9, generator=generator())
    assert torch.equal(paste(images, torch.arange(500).roll(1), boxes), images)


def test_lambda_of_0_takes_the_whole_image_where_the_centre_is_in_the_middle() -> None:
    boxes = sample_boxes(torch.zeros(2000, dtype=torch.float64), 8, 4, generator())
    whole = (boxes == torch.tensor([0, 8, 0, 4])).all(1)
    assert abs(int(whole.sum()) - 2000 / 32) < 5 * (2000 / 32) ** 0.5
    assert torch.equal(pixel_shares(boxes, 8, 4)[whole], torch.tensor([[0.0, 1.0]]).expand(int(whole.sum()), 2))
    # With its centre in the corner pixel, a quarter.
    corner = (boxes == torch.tensor([0, 4, 0, 2])).all(1)
    assert torch.equal(pixel_shares(boxes, 8, 4)[corner], torch.tensor([[0.75, 0.25]]).expand(int(corner.sum()), 2))
    # No box smaller than two pixels is placed, so one pixel is never replaced.
    assert pixel_shares(sample_boxes(torch.zeros(9, dtype=torch.float64), 1, 1, generator()), 1, 1)[:, 1].sum() == 0


def test_centres_are_uniform_over_the_pixels() -> None:
    height, width, n = 6, 5, 30_000
    boxes = sample_boxes(torch.full((n,), 1 - (2.5 / 6) ** 2, dtype=torch.float64), height, width, generator())
    # Each box reaches one pixel to both sides.
    for edge, side in ((boxes[:, 0], height), (boxes[:, 2], width)):
        # Top 0 is of the centres 0 and 1, top j of centre j + 1.
        expected = torch.full((side - 1,), n / side)
        expected[0] *= 2
        assert stats.chisquare(edge.bincount().numpy(), expected.numpy()).pvalue > 1e-3
    assert abs(torch.corrcoef(boxes[:, [0, 2]].T.double())[0, 1]) < 5 / math.sqrt(n)


@pytest.mark.parametrize(("rows", "channels", "height", "width"), SHAPES)
def test_shares_are_exactly_the_fractions_of_the_pixels(rows: int, channels: int, height: int, width: int) -> None:
    _, boxes = drawn(rows, height, width)
    inside = torch.tensor([(bottom - top) * (right - left) for top, bottom, left, right in boxes.tolist()])
    shares = pixel_shares(boxes, height, width)
    assert shares.dtype == torch.float32
    counts = torch.stack([height * width - inside, inside], 1)
    assert torch.equal(shares, (counts.double() / (height * width)).float())
    assert ((shares.double() * height * width).round().long() == counts).all()


@pytest.mark.parametrize(("rows", "channels", "height", "width"), SHAPES)
def test_the_box_is_filled_from_the_partner(rows: int, channels: int, height: int, width: int) -> None:
    partners, boxes = drawn(rows, height, width)
    images = torch.randn(rows, channels, height, width, generator=generator())
    expected = images.clone()
    for row, (top, bottom, left, right) in enumerate(boxes.tolist()):
        expected[row, :, top:bottom, left:right] = images[partners[row], :, top:bottom, left:right]
    assert torch.equal(paste(images, partners, boxes), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_type_and_layout_are_pasted(dtype: torch.dtype) -> None:
    partners, boxes = drawn(6, 8, 10)
    images = torch.randn(6, 3, 8, 10, generator=generator()).to(dtype)
    expected = paste(images, partners, boxes)
    assert expected.dtype == dtype
    assert torch.equal(paste(images.contiguous(memory_format=torch.channels_last), partners, boxes), expected)


# The own label's share: mean, standard deviation, and how often it is below 1/2.
@pytest.mark.parametrize(("side", "mean", "deviation", "below"), [(32, 0.700, 0.184, 0.15), (224, 0.680, 0.188, 0.17)])
def test_statistics_of_the_labels(side: int, mean: float, deviation: float, below: float) -> None:
    g = generator()
    shares = pixel_shares(sample_boxes(sample_lambda(100_000, 1.0, g), side, side, g), side, side)
    own = shares[:, 0].double()
    assert float(own.mean()) == pytest.approx(mean, abs=0.004)
    assert float(own.std()) == pytest.approx(deviation, abs=0.003)
    assert float((own < 0.5).double().mean()) == pytest.approx(below, abs=0.008)
    assert float(shares[:, 1].double().mean()) == pytest.approx(1 - mean, abs=0.004)


def expected_own_share(side: int) -> float:
    """The mean for alpha = 1 exactly: the sum over all reaches and centres."""
    total = 0.0
    for reach in range(side // 2 + 1):
        # int(side * sqrt(1 - lambda) / 2) = reach for uniform lambda.
        chance = min((2 * (reach + 1) / side) ** 2, 1) - (2 * reach / side) ** 2
        lengths = [min(centre + reach, side) - max(centre - reach, 0) for centre in range(side)]
        total += max(chance, 0) * (sum(lengths) / side) ** 2
    return 1 - total / side**2


@pytest.mark.parametrize("side", [3, 8, 32])
def test_mean_share_is_the_exact_one(side: int) -> None:
    g, n = generator(), 100_000
    own = pixel_shares(sample_boxes(sample_lambda(n, 1.0, g), side, side, g), side, side)[:, 0].double()
    assert abs(float(own.mean()) - expected_own_share(side)) < 5 * float(own.std()) / math.sqrt(n)


@pytest.mark.parametrize(("height", "width", "alpha"), [(32, 32, 1.0), (11, 20, 0.3)])
def test_shares_and_boxes_have_torchvisions_distribution(height: int, width: int, alpha: float) -> None:
    theirs, n = v2.CutMix(alpha=alpha, num_classes=2), 3000
    torch.manual_seed(1)
    params = [theirs.make_params([torch.zeros(2, 1, height, width)]) for _ in range(n)]
    g = generator()
    boxes = sample_boxes(sample_lambda(n, alpha, g), height, width, g)
    own = pixel_shares(boxes, height, width)[:, 0].double().numpy()
    assert stats.ks_2samp(own, [given["lam_adjusted"] for given in params]).pvalue > 1e-3
    for ours, edge in zip((2, 0, 3, 1), range(4), strict=True):
        assert stats.ks_2samp(boxes[:, ours].numpy(), [given["box"][edge] for given in params]).pvalue > 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_pixels_and_labels_are_torchvisions_given_the_same_box(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.randn(6, 3, 9, 7, generator=generator()), torch.tensor([0, 3, 2, 3, 1, 0])
    theirs = v2.CutMix(alpha=1.0, num_classes=4)
    torch.manual_seed(seed)
    given = theirs.make_params([images])
    monkeypatch.setattr(theirs, "make_params", lambda _: given)
    expected, targets = theirs(images.clone(), labels)
    left, top, right, bottom = given["box"]
    boxes = torch.tensor([[top, bottom, left, right]]).expand(6, 4)
    partners = torch.arange(6).roll(1)
    assert torch.equal(paste(images, partners, boxes), expected)
    shares = pixel_shares(boxes, 9, 7)
    mixed = torch.zeros(6, 4).scatter_add_(1, torch.stack([labels, labels[partners]], 1), shares)
    torch.testing.assert_close(mixed, targets, atol=2**-23, rtol=0)


def test_nothing_asks_for_a_number_of_the_device() -> None:
    g = generator()
    with FakeTensorMode():
        boxes = sample_boxes(sample_lambda(6, 1.0, g), 8, 9, g)
        images = torch.zeros(6, 3, 8, 9)
        assert paste(images, torch.zeros(6, dtype=torch.int64), boxes).shape == images.shape
        assert pixel_shares(boxes, 8, 9).shape == (6, 2)
