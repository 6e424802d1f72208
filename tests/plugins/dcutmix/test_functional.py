"""DCutMix's pure functions against loops and textbook moments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from augury_dcutmix.functional import (
    blend,
    nested_boxes,
    paste,
    pixel_owners,
    pixel_shares,
    sample_sticks,
    shares_of_sticks,
)

# rows, images a row is mixed from, channels, height, width
SHAPES = [
    (1, 5, 3, 8, 8),
    (3, 5, 1, 7, 5),
    (16, 1, 3, 9, 13),
    (7, 3, 3, 1, 6),
    (6, 4, 1, 1, 1),
    (5, 9, 2, 33, 31),
    (64, 5, 3, 32, 32),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(rows: int, k: int, height: int, width: int, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sources and boxes of one batch."""
    g = generator(rows + 10 * k)
    others = [torch.randperm(rows, generator=g) for _ in range(k - 1)]
    sources = torch.stack([torch.arange(rows), *others], 1)
    return sources, nested_boxes(sample_sticks(rows, k, alpha, g), height, width, g)


def owners_by_loop(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which box each pixel is in last, as filling one after the other finds it."""
    owners = torch.zeros(len(boxes), height, width, dtype=torch.int64)
    for owner, row in zip(owners, boxes.tolist(), strict=True):
        for k, (top, bottom, left, right) in enumerate(row):
            owner[top:bottom, left:right] = k
    return owners


@pytest.mark.parametrize(("rows", "k", "channels", "height", "width"), SHAPES)
def test_shares_are_the_fractions_of_the_pixels(rows: int, k: int, channels: int, height: int, width: int) -> None:
    _, boxes = drawn(rows, k, height, width)
    counts = torch.stack([(owners_by_loop(boxes, height, width) == j).sum((1, 2)) for j in range(k)], 1)
    shares = pixel_shares(boxes, height, width)
    assert shares.dtype == torch.float32
    assert torch.equal(shares, (counts.double() / (height * width)).float())
    assert torch.equal((shares.double() * height * width).round().long(), counts)
    assert ((shares.double().sum(1) - 1).abs() <= k * 2**-25).all()
    if k > 1 and rows > 1 and height * width > 6:
        assert (counts[:, 1:] > 0).any()


@pytest.mark.parametrize(("rows", "k", "channels", "height", "width"), SHAPES)
def test_boxes_are_filled_one_after_the_other(rows: int, k: int, channels: int, height: int, width: int) -> None:
    sources, boxes = drawn(rows, k, height, width)
    images = torch.randn(rows, channels, height, width, generator=generator())
    expected = images.clone()
    for i in range(rows):
        for source, (top, bottom, left, right) in zip(sources[i].tolist(), boxes[i].tolist(), strict=True):
            expected[i, :, top:bottom, left:right] = images[source, :, top:bottom, left:right]
    assert torch.equal(paste(images, sources, boxes), expected)
    assert torch.equal(pixel_owners(boxes, height, width), owners_by_loop(boxes, height, width))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_type_and_layout_are_pasted(dtype: torch.dtype) -> None:
    sources, boxes = drawn(6, 3, 8, 10)
    images = torch.randn(6, 3, 8, 10, generator=generator()).to(dtype)
    expected = paste(images, sources, boxes)
    assert expected.dtype == dtype
    assert torch.equal(paste(images.contiguous(memory_format=torch.channels_last), sources, boxes), expected)


@pytest.mark.parametrize(
    ("k", "alpha", "published"),
    [
        (5, 0.2, [0.713, 0.209, 0.063, 0.014, 0.001]),
        (3, 1 / 3, [0.762, 0.199, 0.039]),
        (5, 1.0, [0.467, 0.258, 0.155, 0.087, 0.033]),
        (2, 1.0, [0.755, 0.245]),
    ],
)
def test_sorted_shares_are_those_of_the_official_sampler(k: int, alpha: float, published: list[float]) -> None:
    g = generator()
    boxes = nested_boxes(sample_sticks(4000, k, alpha, g), 32, 32, g)
    shares = pixel_shares(boxes, 32, 32).sort(1, descending=True).values.mean(0)
    torch.testing.assert_close(shares, torch.tensor(published), atol=0.02, rtol=0)


def assert_mean_and_variance(values: Tensor, mean: Tensor, variance: Tensor) -> None:
    """Within 5 standard errors; that of a variance from the fourth moment in the sample."""
    n = len(values)
    assert ((values.mean(0) - mean).abs() <= 5 * (variance / n).sqrt()).all()
    squares = (values - mean) ** 2
    assert ((squares.mean(0) - variance).abs() <= 5 * squares.std(0) / math.sqrt(n)).all()


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 30.0])
@pytest.mark.parametrize("k", [2, 3, 5])
def test_sticks_are_beta(k: int, alpha: float) -> None:
    sticks = sample_sticks(20_000, k, alpha, generator())
    a = torch.full((k - 1,), alpha, dtype=torch.float64)
    b = alpha * torch.arange(k - 1, 0, -1)
    assert_mean_and_variance(sticks, a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1)))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 30.0])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_parts_are_dirichlet(k: int, alpha: float) -> None:
    parts = shares_of_sticks(sample_sticks(20_000, k, alpha, generator()))
    assert parts.shape == (20_000, k)
    torch.testing.assert_close(parts.sum(1), torch.ones(20_000, dtype=torch.float64))
    variance = (1 / k) * (1 - 1 / k) / (k * alpha + 1)
    ones = torch.ones(k, dtype=torch.float64)
    assert_mean_and_variance(parts, ones / k, ones * variance)


@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 1e6, 1e300])
def test_extreme_concentrations_stay_shares(alpha: float) -> None:
    sticks = sample_sticks(5000, 5, alpha, generator())
    assert ((sticks >= 0) & (sticks <= 1)).all()
    shares = shares_of_sticks(sticks)
    torch.testing.assert_close(shares.mean(0), torch.full((5,), 0.2, dtype=torch.float64), atol=0.03, rtol=0)
    boxes = nested_boxes(sticks, 11, 6, generator())
    assert ((boxes >= 0) & (boxes <= torch.tensor([11, 11, 6, 6]))).all()
    # Few large parts or equal ones.
    expected = 1.0 if alpha < 1e-2 else 0.2
    assert shares.max(1).values.mean() == pytest.approx(expected, abs=0.02)


def test_boxes_are_nested_and_have_the_sides_of_their_sticks() -> None:
    g = generator()
    height, width = 19, 12
    sticks = sample_sticks(2000, 5, 0.7, g)
    top, bottom, left, right = nested_boxes(sticks, height, width, g).unbind(2)
    assert [int(edge[:, 0].unique()) for edge in (top, bottom, left, right)] == [0, height, 0, width]
    for near, far in ((top, bottom), (left, right)):
        assert (near[:, 1:] >= near[:, :-1]).all()
        assert (far[:, 1:] <= far[:, :-1]).all()
        sides = far - near
        assert (sides >= 0).all()
        expected = [
            [round(side * math.sqrt(1 - v)) for side, v in zip(*row, strict=True)]
            for row in zip(sides[:, :-1].tolist(), sticks.tolist(), strict=True)
        ]
        assert sides[:, 1:].tolist() == expected


@pytest.mark.parametrize(
    ("height", "width", "stick", "places"),
    # The last two: a side that does not shrink leaves the other free to move.
    [(8, 6, 0.75, (5, 4)), (9, 9, 1.0, (10, 10)), (9, 2, 0.2, (2, 1)), (2, 9, 0.2, (1, 2))],
)
def test_offsets_are_uniform_and_each_sides_own(height: int, width: int, stick: float, places: tuple[int, int]) -> None:
    rows = 20_000
    sticks = torch.full((rows, 1), stick, dtype=torch.float64)
    boxes = nested_boxes(sticks, height, width, generator())
    top, left = boxes[:, 1, 0], boxes[:, 1, 2]
    cells = places[0] * places[1]
    counts = (top * places[1] + left).bincount()
    assert len(counts) == cells
    assert (top < places[0]).all()
    assert (left < places[1]).all()
    spread = math.sqrt(rows * (1 / cells) * (1 - 1 / cells))
    assert ((counts - rows / cells).abs() <= 5 * spread).all()


def test_offsets_are_uniform_within_the_parent() -> None:
    sticks = torch.full((20_000, 2), 0.75, dtype=torch.float64)
    boxes = nested_boxes(sticks, 8, 8, generator())
    inner = boxes[:, 2, 0] - boxes[:, 1, 0]
    assert inner.bincount().tolist() == pytest.approx([20_000 / 3] * 3, abs=5 * math.sqrt(20_000 * 2 / 9))
    # Independent of the parent's own offset.
    parent = boxes[:, 1, 0].double()
    assert abs(torch.corrcoef(torch.stack([parent, inner.double()]))[0, 1]) < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blend_is_the_weighted_sum(dtype: torch.dtype) -> None:
    sources, _ = drawn(6, 4, 5, 3)
    shares = shares_of_sticks(sample_sticks(6, 4, 0.5, generator())).float()
    images = torch.randn(6, 2, 5, 3, generator=generator()).to(dtype)
    expected = torch.einsum("mk,mkchw->mchw", shares.double(), images.double()[sources])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(blend(images, sources, shares).double(), expected, atol=tolerance, rtol=0)


def test_nothing_asks_for_a_number_of_the_device() -> None:
    g = generator()
    with FakeTensorMode():
        sticks = sample_sticks(6, 4, 0.2, g)
        boxes = nested_boxes(sticks, 8, 9, g)
        images = torch.zeros(6, 3, 8, 9)
        sources = torch.zeros(6, 4, dtype=torch.int64)
        assert paste(images, sources, boxes).shape == images.shape
        assert pixel_shares(boxes, 8, 9).shape == (6, 4)
        assert blend(images, sources, shares_of_sticks(sticks)).shape == images.shape
