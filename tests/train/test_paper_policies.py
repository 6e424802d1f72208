"""The papers' random ops: whole batches against PIL, called as the papers' programs call it."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from sklearn.datasets import load_digits, load_sample_image
from tests.train.words import (
    apply,
    assert_keeps_shape_and_input,
    assert_own_uniforms_alone,
    assert_reads_nothing_back,
    frame,
    noise,
    word,
)
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from augury.distributed import Ranks
from augury.errors import UsageError
from augury_train.data.loader import Order
from augury_train.data.memory import MemoryFeed
from augury_train.data.pipeline import Pipeline, parse
from augury_train.data.source import ArraySource
from augury_train.data.splits import Split, Splits
from augury_train.data.stream import StreamFeed
from augury_train.data.transforms import Frame
from augury_train.data.view import DataSet, ImageFormat

WORDS = ["randaugment_ra", "randaugment_ra:n=3,m=11", "severe:4", "lighting:0.1"]
CPU = torch.device("cpu")
Op = Callable[[Image.Image, float], Image.Image]


def affine(*matrix: Callable[[Image.Image, float], float] | float) -> Op:
    def op(image: Image.Image, v: float) -> Image.Image:
        values = [entry(image, v) if callable(entry) else entry for entry in matrix]
        return image.transform(image.size, Image.Transform.AFFINE, values)

    return op


# In the order of the list in the paper's program; the least and the largest magnitude; whether it goes both ways.
RANDOM: list[tuple[str, Op, float, float, bool]] = [
    ("identity", lambda image, v: image, 0, 1, False),
    ("shear x", affine(1, lambda image, v: v, 0, 0, 1, 0), 0, 0.3, True),
    ("shear y", affine(1, 0, 0, lambda image, v: v, 1, 0), 0, 0.3, True),
    ("translate x", affine(1, 0, lambda image, v: v * image.size[0], 0, 1, 0), 0, 0.45, True),
    ("translate y", affine(1, 0, 0, 0, 1, lambda image, v: v * image.size[1]), 0, 0.45, True),
    ("rotate", lambda image, v: image.rotate(v), 0, 30, True),
    ("autocontrast", lambda image, v: ImageOps.autocontrast(image), 0, 1, False),
    ("invert", lambda image, v: ImageOps.invert(image), 0, 1, False),
    ("equalize", lambda image, v: ImageOps.equalize(image), 0, 1, False),
    ("solarize", lambda image, v: ImageOps.solarize(image, v), 0, 256, False),
    ("posterize", lambda image, v: ImageOps.posterize(image, int(v)), 4, 8, False),
    ("color", lambda image, v: ImageEnhance.Color(image).enhance(v), 0.1, 1.9, False),
    ("brightness", lambda image, v: ImageEnhance.Brightness(image).enhance(v), 0.1, 1.9, False),
    ("sharpness", lambda image, v: ImageEnhance.Sharpness(image).enhance(v), 0.1, 1.9, False),
]
SEVERE = [(name, op, 0, {"shear": 2, "translate": 1}[name[:-2]], True) for name, op, *_ in RANDOM[1:5]]


@cache
def real(channels: int) -> Tensor:
    """Handwritten digits, or pieces of a photograph."""
    if channels == 1:
        return torch.from_numpy((load_digits().images[:12] * 15).astype(np.uint8))[:, None]
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    return photograph.unfold(1, 48, 161).unfold(2, 40, 157).permute(1, 2, 0, 3, 4).flatten(0, 1)


def by_pil(images: Tensor, op: Op, value: float) -> Tensor:
    return torch.stack([F.pil_to_tensor(op(F.to_pil_image(image), value)) for image in images])


def chosen(count: int, number: int, sign: float, n: int) -> Tensor:
    """Uniforms that choose one of `count` ops, and its sign."""
    return torch.tensor([[(number + 0.5) / count, sign]]).expand(n, -1)


@pytest.mark.parametrize(
    "make", [lambda: real(1), lambda: real(3), lambda: noise(9, 3, 32, 32), lambda: noise(9, 1, 30, 28)]
)
@pytest.mark.parametrize("number", range(len(RANDOM)), ids=[name for name, *_ in RANDOM])
def test_each_op_is_pils_at_every_magnitude(number: int, make: Callable[[], Tensor]) -> None:
    images = make()
    _, op, low, high, both_ways = RANDOM[number]
    for m, (sign, uniform) in product((0, 1, 7, 12, 15, 22, 28, 29, 30), ((-1, 0.2), (1, 0.7))):
        value = m / 30 * (high - low) + low
        found = apply(f"randaugment_ra:n=1,m={m}", images, chosen(14, number, uniform, len(images)))
        expected = by_pil(images, op, sign * value if both_ways else value)
        assert torch.equal(found, expected)


TIES = 0.01
"""Largest share of pixels that PIL takes from the other one of two equally near ones, at the sides where that happens.

It adds up positions in floating point, so that a translation by -4.500000000000001 pixels is rounded up for some pixels
and down for others. Over all magnitudes and all sides from 2 to 256 pixels it is 0.0006; at 28, 32, 64 or 224 it is 0.
"""


def test_translations_by_half_pixels_are_pils_but_for_ties() -> None:
    wrong = []
    for side, m, (sign, uniform) in product((25, 32, 50, 64), range(31), ((-1, 0.2), (1, 0.7))):
        image = noise(1, 1, 1, side)
        found = apply(f"randaugment_ra:n=1,m={m}", image, chosen(14, 3, uniform, 1))
        expected = by_pil(image, RANDOM[3][1], sign * (m / 30 * 0.45))
        wrong.append((found != expected).float().mean().item())
        assert side in (25, 50) or not wrong[-1]
    assert sum(wrong) / len(wrong) < TIES


@pytest.mark.parametrize("number", range(4), ids=[name for name, *_ in SEVERE])
def test_severe_geometry_is_pils_at_every_magnitude(number: int) -> None:
    images = real(3)
    _, op, low, high, _ = SEVERE[number]
    for m, (sign, uniform) in product(range(11), ((-1, 0.2), (1, 0.7))):
        drawn = torch.cat([chosen(5, number, uniform, len(images)), torch.rand(len(images), 1)], 1)
        found = apply(f"severe:{m}", images, drawn)
        assert torch.equal(found, by_pil(images, op, sign * (m / 10 * (high - low) + low)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("m", [0, 1, 5, 10])
def test_severe_blanks_the_square_of_the_paper(m: int, channels: int) -> None:
    images = noise(80, channels, 12, 9)
    drawn = torch.rand(80, 3)
    drawn[:, 0] = 0.9
    first, second = drawn.double()[:, 1:].unbind(1)
    for image, y, x, made in zip(
        images, first.tolist(), second.tolist(), apply(f"severe:{m}", images, drawn), strict=True
    ):
        one = F.to_pil_image(image)
        if m:
            side = math.sqrt(m / 10) * 9
            left, top = int(max(0, x * 9 - side / 2)), int(max(0, y * 12 - side / 2))
            box = (left, top, min(9, left + side), min(12, top + side))
            ImageDraw.Draw(one).rectangle(box, (125, 123, 114) if channels == 3 else 121)
        assert torch.equal(F.pil_to_tensor(one), made)


def outcomes(image: Tensor, n: int, m: int) -> dict[bytes, float]:
    """What the paper's RandAugment can make of an image, and with which probability."""
    made = [(F.to_pil_image(image), 1.0)]
    for _ in range(n):
        made = [
            (op(one, sign * (m / 30 * (high - low) + low)), share / len(RANDOM) / (2 if both_ways else 1))
            for one, share in made
            for _, op, low, high, both_ways in RANDOM
            for sign in ((-1, 1) if both_ways else (1,))
        ]
    return total((F.pil_to_tensor(one).numpy().tobytes(), share) for one, share in made)


def severe_outcomes(image: Tensor, m: int) -> dict[bytes, float]:
    """What `severe` can make of an image but by blanking, which is left over."""
    one = F.to_pil_image(image)
    return total(
        (F.pil_to_tensor(op(one, sign * (m / 10 * (high - low) + low))).numpy().tobytes(), 0.1)
        for (_, op, low, high, _), sign in product(SEVERE, (-1, 1))
    )


def total(shares: Iterable[tuple[bytes, float]]) -> dict[bytes, float]:
    found: Counter[bytes] = Counter()
    for made, share in shares:
        found[made] += share  # type: ignore[assignment]
    return dict(found)


@pytest.mark.parametrize("form", ["batch", "single"])
@pytest.mark.parametrize("text", ["randaugment_ra:n=1,m=28", "randaugment_ra:n=2,m=9", "severe:3"])
def test_each_outcome_is_as_likely_as_in_the_paper(text: str, form: str) -> None:
    # Sides at which no pixel lies halfway between two.
    image, n = noise(1, 3, 11, 13), 4000
    expected = severe_outcomes(image[0], 3) if text == "severe:3" else outcomes(image[0], int(text[17]), int(text[21:]))
    torch.manual_seed(7)
    if form == "batch":
        found = apply(text, image.expand(n, -1, -1, -1), torch.rand(n, word(text, image).draws))
    else:
        single, one = word(text, image).single(frame(image)), F.to_pil_image(image[0])
        found = torch.stack([F.pil_to_tensor(single(one)) for _ in range(n)])
    counts = Counter(made.tobytes() for made in found.numpy())
    pairs = [(counts[made], n * share) for made, share in expected.items() if n * share >= 5]
    pairs.append((n - sum(count for count, _ in pairs), n - sum(mean for _, mean in pairs)))
    pairs = [(count, mean) for count, mean in pairs if mean > 1e-9 or count]
    statistic, freedom = sum((count - mean) ** 2 / mean for count, mean in pairs), len(pairs) - 1
    assert (statistic - freedom) / math.sqrt(2 * freedom) < 4.5
    if text != "severe:3":
        assert sum(counts[made] for made in expected) == n, "an image that the paper's program cannot make"


def test_squares_of_severe_fall_alike_in_both_forms() -> None:
    image, n = torch.full((1, 1, 20, 16), 255, dtype=torch.uint8), 1500
    found = apply("severe:2", image.expand(n, -1, -1, -1), torch.cat([torch.full((n, 1), 0.9), torch.rand(n, 2)], 1))
    single, one = word("severe:2", image).single(frame(image)), F.to_pil_image(image[0])
    torch.manual_seed(5)
    by_one = torch.stack([F.pil_to_tensor(single(one)) for _ in range(5 * n)])
    shares = []
    for made in (found, by_one):
        blanked = made[(made == 121).flatten(1).any(1)]
        shares.append((blanked == 121).double().mean(0))
    # Five ops, one of which blanks; a share's deviation is at most 1 / 2 / sqrt(n).
    assert (shares[0] - shares[1]).abs().max() < 5 * math.sqrt(2 / n) / 2


VALUES = np.array([0.2175, 0.0188, 0.0045])
VECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def test_lighting_shifts_along_the_principal_components() -> None:
    images, drawn = noise(60, 3, 5, 4), torch.rand(60, 3)
    normal = math.sqrt(2) * torch.erfinv(2 * drawn.double() - 1)
    shifts = np.rint(255 * (0.3 * normal.numpy() * VALUES) @ VECTORS.T)
    expected = np.clip(images.numpy() + shifts[:, :, None, None], 0, 255)
    found = apply("lighting:0.3", images, drawn).numpy()
    assert np.abs(shifts).max() > 10
    assert (found == expected).mean(axis=(1, 2, 3)).min() == 1


@pytest.mark.parametrize("ends", [0.0, 1 - 2**-24])
def test_lighting_has_no_infinite_draw(ends: float) -> None:
    made = apply("lighting:0.1", torch.full((1, 3, 1, 1), 128, dtype=torch.uint8), torch.full((1, 3), ends))
    # 5.4 deviations along each component.
    shifts = np.rint(255 * 0.1 * math.copysign(5.42, ends - 0.5) * VECTORS @ VALUES)
    assert np.abs(made.numpy().ravel() - 128.0 - shifts).max() <= 1


def test_lighting_is_alike_in_both_forms() -> None:
    image, n = torch.full((1, 3, 1, 1), 128, dtype=torch.uint8), 4000
    found = apply("lighting:0.3", image.expand(n, -1, -1, -1), torch.rand(n, 3)).double().view(n, 3)
    single, one = word("lighting:0.3", image).single(frame(image)), F.to_pil_image(image[0])
    by_one = torch.stack([F.pil_to_tensor(single(one)) for _ in range(n)]).double().view(n, 3)
    covariance = (VECTORS * (255 * 0.3 * VALUES) ** 2) @ VECTORS.T
    for made in (found, by_one):
        assert (made.mean(0) - 128).abs().max() < 5 * math.sqrt(covariance.max() / n)
        # Rounding adds a twelfth to variances.
        assert np.abs(np.cov(made.T.numpy()) - covariance).max() < 0.1 * covariance.max()


@pytest.mark.parametrize("ends", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("text", WORDS)
def test_the_least_and_the_largest_uniforms(text: str, ends: float) -> None:
    images = noise(4, 3, 8, 8)
    found = apply(text, images, torch.full((4, word(text, images).draws), ends))
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)


@pytest.mark.parametrize("text", WORDS)
def test_a_row_depends_on_its_own_uniforms_alone_and_on_all_of_them(text: str) -> None:
    images = noise(200, 3, 9, 12)
    assert_own_uniforms_alone(text, images)
    drawn = torch.rand(200, word(text, images).draws)
    found = apply(text, images, drawn)
    for column in range(drawn.shape[1]):
        other = drawn.clone()
        other[:, column] = torch.rand(200)
        assert not torch.equal(apply(text, images, other), found), f"column {column} changes nothing"


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 3), (3, 33, 20)], ids=str)
@pytest.mark.parametrize("text", [text for text in WORDS if "lighting" not in text])
def test_images_keep_shape_and_type_and_are_not_written_to(text: str, shape: tuple[int, int, int]) -> None:
    images = noise(20, *shape)
    assert_keeps_shape_and_input(text, images)
    assert not word(text, images).last


@pytest.mark.parametrize("text", WORDS)
def test_nothing_is_read_back_from_the_device(text: str) -> None:
    assert_reads_nothing_back(text)


@pytest.mark.parametrize("text", WORDS)
def test_the_single_form_travels_to_workers_and_draws_from_torch(text: str) -> None:
    image = noise(1, 3, 10, 8)
    single = pickle.loads(pickle.dumps(word(text, image).single(frame(image))))
    one = F.to_pil_image(image[0])
    before, seen = one.tobytes(), set()
    for seed in range(12):
        torch.manual_seed(seed)
        made = single(one)
        torch.manual_seed(seed)
        assert single(one).tobytes() == made.tobytes()
        seen.add(made.tobytes())
    assert len(seen) > 2
    assert one.tobytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("randaugment_ra:0", "argument `n` must be >= 1, got 0."),
        ("randaugment_ra:m=31", "argument `m` must be <= 30, got 31."),
        ("randaugment_ra:m=-1", "argument `m` must be >= 0, got -1."),
        ("randaugment_ra:k=3", "unknown argument `k`."),
        ("severe", "argument `m` must be given, got nothing. Write severe:N, N its m."),
        ("severe:11", "argument `m` must be <= 10, got 11."),
        ("severe:-1", "argument `m` must be >= 0, got -1."),
        ("lighting:0", "argument `std` must be > 0, got 0."),
        ("lighting:2", "argument `std` must be <= 1, got 2."),
        ("lighting", "transform `lighting` must have colours to shift, got 1 channel. Leave it out."),
    ],
)
def test_wrong_arguments_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse([text], "data.augmented", Frame((8, 8), (0.5,)))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_both_loaders_make_what_the_paper_makes(kind: str) -> None:
    drawn, count = np.random.default_rng(0), 40
    source = ArraySource(drawn.integers(0, 256, (count, 3, 9, 9), dtype=np.uint8), np.zeros(count, dtype=int))
    form = ImageFormat(3, 9, 9, "bilinear", (0.5,) * 3, (0.25,) * 3)
    images = DataSet(Splits(Split(source, torch.arange(count)), None, None), ["a"], form, [])
    feed = MemoryFeed(images, CPU) if kind == "memory" else StreamFeed(images, CPU, 0)
    words = parse(["randaugment_ra:n=1,m=28"], "data.augmented", form.frame)
    pipelines = {"augmented": Pipeline(words, form.frame, form.std, CPU)}
    loader = feed.training(Order(count, 8, 1, {"augmented": 1.0}, 4, Ranks(), 1), pipelines)
    originals, seen = images.pixels(images.splits.train), set()
    for batch in loader.epoch(0):
        levels = ((batch.images * 0.25 + 0.5) * 255).round().byte()
        for row, index in zip(levels, batch.indices, strict=True):
            possible = list(outcomes(originals[index], 1, 28))
            assert row.numpy().tobytes() in possible
            seen.add(possible.index(row.numpy().tobytes()))
    assert len(seen) > 8
