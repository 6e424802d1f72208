"""The words that crop, mirror and blank: whole batches against torchvision on one PIL image at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from augury_train.data.geometry import centre_square
from augury_train.data.pipeline import parse
from augury_train.data.transforms import Frame, Transform, Uniforms

SHAPES = [(1, 1, 1, 1), (3, 1, 8, 8), (5, 3, 7, 4), (4, 3, 1, 9), (64, 3, 32, 32)]
LARGEST = 1 - 2**-24
"""The largest float32 below 1."""
GREY, COLOUR = (0.4,), (0.2, 0.5, 0.7)


def frame(images: Tensor, size: tuple[int, int] | None = None, interpolation: str = "bilinear") -> Frame:
    height, width = images.shape[-2:]
    return Frame(size or (height, width), GREY if images.shape[1] == 1 else COLOUR, interpolation)


def word(text: str, of: Frame) -> Transform:
    return parse([text], "data.base", of)[0]


def apply(text: str, images: Tensor, drawn: Tensor, of: Frame | None = None) -> Tensor:
    of = of or frame(images)
    return word(text, of)(images, Uniforms(drawn, drawn), of)


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def uniforms(text: str, images: Tensor) -> Tensor:
    return torch.rand(len(images), word(text, frame(images)).draws)


def pil(image: Tensor) -> Image.Image:
    return v2.functional.to_pil_image(image)


def pixels(image: Image.Image) -> Tensor:
    return v2.functional.pil_to_tensor(image)


def largest_gap(one: np.ndarray, other: np.ndarray) -> float:
    """Kolmogorov and Smirnov's statistic of two samples of one size, in units that 1.95 exceeds once in 1,000 times."""
    at = np.unique(np.concatenate([one, other]))
    below = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(below[0] - below[1]).max() * math.sqrt(len(one) / 2))


# Mirroring takes a padding of fewer pixels than the image has; other words are refused when they are read.
CROPS = [("crop", "constant", padding, shape) for padding in (1, 3) for shape in SHAPES]
CROPS += [("reflect_crop", "reflect", padding, shape) for _, _, padding, shape in CROPS if padding < min(shape[2:])]


@pytest.mark.parametrize(("name", "mode", "padding", "shape"), CROPS)
def test_crops_take_the_window_that_torchvision_takes(
    name: str, mode: str, padding: int, shape: tuple[int, ...]
) -> None:
    images, drawn = noise(shape), torch.rand(shape[0], 2)
    found = apply(f"{name}:{padding}", images, drawn)
    for image, made, (u, v) in zip(images, found, drawn.tolist(), strict=True):
        padded = v2.functional.pad(pil(image), [padding], padding_mode=mode)
        top, left = int(u * (2 * padding + 1)), int(v * (2 * padding + 1))
        assert torch.equal(made, pixels(v2.functional.crop(padded, top, left, *shape[2:])))


@pytest.mark.parametrize("shape", SHAPES)
def test_flip_mirrors_below_one_half(shape: tuple[int, ...]) -> None:
    images, drawn = noise(shape), torch.rand(shape[0], 1)
    drawn[0] = 0.5
    found = apply("flip", images, drawn)
    for image, made, u in zip(images, found, drawn[:, 0].tolist(), strict=True):
        assert torch.equal(made, pixels(v2.functional.hflip(pil(image)) if u < 0.5 else pil(image)))


def blanked(images: Tensor, place: Callable[[int], tuple[int, int, int, int] | None]) -> Tensor:
    """`images` with the rectangle (top, left, height, width) of each row blanked, where it has one."""
    expected = images.clone()
    blank = torch.tensor([round(255 * mean) for mean in frame(images).mean])[:, None, None]
    for row in range(len(images)):
        box = place(row)
        if box is not None:
            top, left, h, w = box
            rows, columns = slice(max(top, 0), max(top + h, 0)), slice(max(left, 0), max(left + w, 0))
            expected[row, :, rows, columns] = 0 if images.is_floating_point() else blank.to(images.dtype)
    return expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 4, 5, 40])
@pytest.mark.parametrize("as_floats", [False, True])
def test_cutout_blanks_the_square_that_the_border_leaves(shape: tuple[int, ...], size: int, as_floats: bool) -> None:
    images = torch.randn(shape) if as_floats else noise(shape)
    drawn = torch.rand(shape[0], 2)
    centres = [(int(u * shape[2]), int(v * shape[3])) for u, v in drawn.tolist()]
    expected = blanked(images, lambda row: (*(c - size // 2 for c in centres[row]), size, size))
    assert torch.equal(apply(f"cutout:{size}", images, drawn), expected)


def box(drawn: list[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]):  # type: ignore[no-untyped-def]
    """Each attempt's (height, width), the ratio being width over height."""
    for u, v in zip(drawn[::2], drawn[1::2], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * u)
        aspect = ratio[0] * (ratio[1] / ratio[0]) ** v
        yield round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))


def erased(drawn: list[float], height: int, width: int) -> tuple[int, int, int, int] | None:
    """Zhong et al.'s rectangle (top, left, height, width) for a row of 23 uniforms; None where there is none."""
    # Its ratio is height over width.
    for w, h in box(drawn[1:21], height, width, (0.02, 0.33), (0.3, 3.3)):
        if 0 < h < height and 0 < w < width:
            return int(drawn[21] * (height - h + 1)), int(drawn[22] * (width - w + 1)), h, w
    return None


def mirrored(drawn: Tensor) -> list[list[float]]:
    """Uniforms whose ratios, counted as height over width, are those that the word counts as width over height."""
    drawn = drawn.clone()
    drawn[:, 2:21:2] = 1 - drawn[:, 2:21:2]
    return drawn.tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("as_floats", [False, True])
def test_random_erasing_blanks_its_rectangle_in_its_share(shape: tuple[int, ...], as_floats: bool) -> None:
    images = torch.randn(shape) if as_floats else noise(shape)
    drawn = uniforms("random_erasing", images).double()
    rows = mirrored(drawn)
    expected = blanked(images, lambda row: erased(rows[row], *shape[2:]) if drawn[row, 0] < 0.6 else None)
    assert torch.equal(apply("random_erasing:0.6", images, drawn), expected)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 30)])
def test_random_erasing_draws_the_rectangles_of_torchvision(height: int, width: int) -> None:
    images = torch.ones(2000, 1, height, width)
    mask = apply("random_erasing:1", images, uniforms("random_erasing", images))[:, 0] == 0
    inside_y, inside_x = mask.any(2), mask.any(1)
    found = torch.stack([inside_y.int().argmax(1), inside_x.int().argmax(1), inside_y.sum(1), inside_x.sum(1)])
    assert torch.equal(mask, inside_y[:, :, None] & inside_x[:, None, :])
    theirs = [v1.RandomErasing.get_params(images[0], (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(2000)]
    for ours, their in zip(found.numpy(), np.array(theirs).T, strict=True):
        assert largest_gap(ours, their) < 1.95


def resized(drawn: list[float], height: int, width: int, least: float) -> tuple[int, int, int, int]:
    """torchvision's box (top, left, height, width) for a row of 22 uniforms."""
    for h, w in box(drawn[:20], height, width, (least, 1.0), (3 / 4, 4 / 3)):
        if 0 < h <= height and 0 < w <= width:
            return int(drawn[20] * (height - h + 1)), int(drawn[21] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resizes(images: Tensor, size: tuple[int, int], interpolation: str, least: float) -> Tensor:
    """How far the word is from cropping and resizing the box with PIL, in grey levels."""
    drawn = uniforms("random_resized_crop", images).double()
    found = apply(f"random_resized_crop:{least}", images, drawn, frame(images, size, interpolation))
    assert found.dtype == torch.uint8
    mode, expected = v2.InterpolationMode(interpolation), []
    for image, row in zip(images, drawn.tolist(), strict=True):
        place = resized(row, *images.shape[2:], least)
        expected.append(pixels(v2.functional.resized_crop(pil(image), *place, list(size), mode)))
    return (found.int() - torch.stack(expected).int()).abs()


@pytest.mark.parametrize("shape", [*SHAPES, (24, 3, 4, 40), (24, 1, 50, 5), (24, 3, 45, 61)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(16, 16), (5, 9), (1, 1)])
@pytest.mark.parametrize("least", [0.08, 1.0])
def test_random_resized_crop_resizes_its_box_as_pil_does(
    shape: tuple[int, ...], interpolation: str, size: tuple[int, int], least: float
) -> None:
    # Far enough from black and white for no bicubic weights to lead beyond them.
    assert resizes(noise(shape) % 176 + 40, size, interpolation, least).max() <= 1


def test_random_resized_crop_cuts_off_what_overshoots() -> None:
    # Pillow 13 resizes vertically first where that is less work, earlier ones never, and each cuts off in between.
    apart = resizes(noise((64, 3, 24, 24)), (18, 18), "bicubic", 0.08)
    assert apart.max() < 40, "a level that wraps around is far off"
    assert (apart > 1).float().mean() < 0.02


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 64), (64, 11)])
def test_random_resized_crop_draws_the_boxes_of_torchvision(height: int, width: int) -> None:
    # That the word takes these boxes is what the test above shows.
    ours = [resized(row, height, width, 0.08) for row in torch.rand(2000, 22).double().tolist()]
    image = torch.empty(1, height, width)
    theirs = [v1.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)]
    for one, other in zip(np.array(ours).T, np.array(theirs).T, strict=True):
        assert largest_gap(one, other) < 1.95


@pytest.mark.parametrize("text", ["crop:2", "reflect_crop:2", "flip", "cutout:3", "cutout:4", "random_erasing:1"])
@pytest.mark.parametrize("shape", [(6, 3, 7, 4), (6, 1, 5, 5)])
def test_every_single_result_is_a_batched_one_and_as_frequent(text: str, shape: tuple[int, ...]) -> None:
    image = noise(shape)[:1]
    of = frame(image)
    single, count = word(text, of).single(of), 1200
    many = image.expand(count, -1, -1, -1)
    batched = Counter(bytes(made.numpy().tobytes()) for made in apply(text, many, uniforms(text, many)))
    one_by_one = Counter(bytes(pixels(single(pil(image[0]))).numpy().tobytes()) for _ in range(count))
    for result in batched.keys() | one_by_one.keys():
        a, b = batched[result], one_by_one[result]
        assert abs(a - b) < 4.5 * math.sqrt(a + b + 1), f"{a} of the batch and {b} single ones look alike"


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_single_random_resized_crop_is_torchvisions(interpolation: str) -> None:
    image = noise((1, 3, 20, 31))
    of = frame(image, (8, 6), interpolation)
    single = word("random_resized_crop:0.3", of).single(of)
    torch.manual_seed(1)
    top, left, h, w = v1.RandomResizedCrop.get_params(image[0], [0.3, 1.0], [3 / 4, 4 / 3])
    torch.manual_seed(1)
    mode = v2.InterpolationMode(interpolation)
    expected = v2.functional.resized_crop(pil(image[0]), top, left, h, w, [8, 6], mode)
    assert torch.equal(pixels(single(pil(image[0]))), pixels(expected))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_single_random_erasing_is_torchvisions(channels: int) -> None:
    images = noise((40, channels, 40, 23))
    of = frame(images)
    single = word("random_erasing:0.5", of).single(of)
    theirs = v2.RandomErasing(0.5, scale=(0.02, 0.33), ratio=(0.3, 3.3), value=[float(level) for level in of.blank])
    for seed, image in enumerate(images):
        torch.manual_seed(seed)
        expected = theirs(image)
        torch.manual_seed(seed)
        assert torch.equal(pixels(single(pil(image))), expected)


ALL = ["crop:2", "reflect_crop:2", "flip", "cutout:3", "random_erasing:1", "random_resized_crop"]


@pytest.mark.parametrize("text", ALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_depends_on_its_own_uniforms_alone(text: str, channels: int) -> None:
    images = noise((9, channels, 11, 6))
    drawn = uniforms(text, images)
    before, given = images.clone(), drawn.clone()
    whole, order = apply(text, images, drawn), torch.randperm(9)[:5]
    assert torch.equal(apply(text, images[order], drawn[order]), whole[order])
    assert torch.equal(images, before), "the images that are kept must stay as they are"
    assert torch.equal(drawn, given)


ENDS = [(text, shape) for text in ALL for shape in ((1, 1), (1, 6), (5, 3), (8, 8))]


@pytest.mark.parametrize(("text", "shape"), [e for e in ENDS if e[0] != "reflect_crop:2" or min(e[1]) > 2])
@pytest.mark.parametrize("u", [0.0, LARGEST])
def test_the_ends_of_the_uniforms_stay_inside_the_image(text: str, shape: tuple[int, int], u: float) -> None:
    images = torch.full((2, 3, *shape), 200, dtype=torch.uint8)
    drawn = torch.full_like(uniforms(text, images), u)
    found = apply(text, images, drawn)
    assert found.shape == images.shape
    allowed = {200, *(frame(images).blank if text.startswith(("cutout", "random_erasing")) else ())}
    assert set(found.unique().tolist()) <= allowed | ({0} if text.startswith("crop") else set())


def test_the_ends_of_the_uniforms_reach_both_corners() -> None:
    image = noise((1, 1, 6, 6)).clamp(min=1)
    low, high = (apply("crop:2", image, torch.full((1, 2), u)) for u in (0.0, LARGEST))
    assert torch.equal(low[..., 2:, 2:], image[..., :4, :4])
    assert torch.equal(high[..., :4, :4], image[..., 2:, 2:])
    low, high = (apply("cutout:1", image, torch.full((1, 2), u)) for u in (0.0, LARGEST))
    assert (low != image).nonzero().tolist() in ([], [[0, 0, 0, 0]])
    assert (high != image).nonzero().tolist() in ([], [[0, 0, 5, 5]])


def test_an_image_too_small_to_erase_from_is_left_alone() -> None:
    images = noise((4, 3, 1, 1))
    assert torch.equal(apply("random_erasing:1", images, uniforms("random_erasing", images)), images)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(8, 8), (1, 1), (21, 8), (9, 30), (5, 4)])
def test_the_centre_square_is_the_middle_of_the_shorter_side(
    mode: str, interpolation: str, width: int, height: int
) -> None:
    image = pil(noise((3 if mode == "RGB" else 1, height, width)))
    found = centre_square(image, 8, interpolation)
    assert (found.mode, found.size) == (mode, (8, 8))
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    resample = Image.Resampling[interpolation.upper()]
    expected = image.resize((8, 8), resample, box=(left, top, left + side, top + side))
    assert np.array_equal(np.asarray(found), np.asarray(expected))
