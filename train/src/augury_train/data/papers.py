"""The words whose ops and ranges are those of the papers' own programs: PIL's ops, nearest neighbour, black outside,
and magnitudes that are linear from one end of a range to the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field
from torch import Tensor

from augury_train.data.geometry import between
from augury_train.data.ops import GEOMETRY, NAMES, apply_each
from augury_train.data.transforms import Frame, Single, Uniforms, Word, pick

Ranges = Mapping[str, tuple[float, float]]
"""Ops and, from the least to the largest magnitude, what PIL gets: for translations a share of the side."""

RANDOM: Ranges = {
    "Identity": (0, 0),
    "ShearX": (0, 0.3),
    "ShearY": (0, 0.3),
    "TranslateX": (0, 0.45),
    "TranslateY": (0, 0.45),
    "Rotate": (0, 30),
    "AutoContrast": (0, 0),
    "Invert": (0, 0),
    "Equalize": (0, 0),
    "Solarize": (0, 256),
    "Posterize": (4, 8),
    "Color": (0.1, 1.9),
    "Brightness": (0.1, 1.9),
    "Sharpness": (0.1, 1.9),
}

SEVERE: Ranges = {
    "ShearX": (0, 2),
    "ShearY": (0, 2),
    "TranslateX": (0, 1),
    "TranslateY": (0, 1),
    "Cutout": (0, 1),
}
"""Of Cutout: the share of the area, were the image a square."""

GREY = (125, 123, 114)
"""What `severe` blanks with: ImageNet's mean colour."""


class RandAugmentRA(Word):
    """`n` random ops, drawn with replacement, each at magnitude `m` of 30 (`randaugment_ra:n=2,m=28`; arXiv
    2205.12606).

    Unlike `randaugment`, it has Invert and no Contrast, only what moves pixels goes both ways, and magnitudes grow
    from one end of the range to the other: Color, Brightness and Sharpness do nothing at `m` = 15, Posterize and
    Solarize nothing at 30.
    """

    n: int = Field(2, ge=1, le=10, description="ops one after the other")
    m: int = Field(28, ge=0, le=30, description="magnitude, 0 to 30")

    @property
    def draws(self) -> int:
        return 2 * self.n

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        for op, sign in uniforms.host.unflatten(1, (self.n, 2)).permute(1, 2, 0):
            images = _apply(images, RANDOM, pick(op, len(RANDOM)), sign, self.m / 30)
        return images

    def single(self, frame: Frame) -> Single:
        return _Single(RANDOM, self.n, self.m / 30)


class Severe(Word):
    """One random op at magnitude `m` of 10: shear by up to 2 or move by up to the whole side, along either axis and
    either way, or blank a square of grey, up to the whole image (`severe:5`; arXiv 2205.12606).

    The square's side is √(m / 10) of the width, its middle a random pixel; at the top and the left it is moved inside,
    at the bottom and the right cut off, as in the official program.
    """

    m: int = Field(ge=0, le=10, description="magnitude, 0 to 10")
    draws: ClassVar[int] = 3

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        # The second column is a row of pixels for the square, and a sign for the others.
        op, first, second = uniforms.host.unbind(1)
        chosen = pick(op, len(SEVERE))
        images = _apply(images, SEVERE, chosen, first, self.m / 10)
        boxes = _boxes(first.double(), second.double(), self.m / 10, (images.shape[-2], images.shape[-1]))
        boxes *= (chosen == list(SEVERE).index("Cutout"))[:, None]
        top, bottom, left, right = boxes.to(images.device, non_blocking=True).unbind(1)
        mask = between(top, bottom, images.shape[-2])[:, :, None] * between(left, right, images.shape[-1])[:, None]
        grey = torch.tensor(_grey(images.shape[1]), dtype=torch.uint8).to(images.device, non_blocking=True)
        return torch.where(mask[:, None] > 0, grey[:, None, None], images)

    def single(self, frame: Frame) -> Single:
        return _Single(SEVERE, 1, self.m / 10)


EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""Of ImageNet's colours on the scale of [0, 1]: a row for red, green and blue, a column for each eigenvalue."""


class Lighting(Word):
    """Shift all of an image's colours along ImageNet's principal components, each by a normal draw of deviation `std`
    times its eigenvalue (`lighting:0.1`; Krizhevsky et al. 2012).

    On 8-bit images: the shift is rounded to whole levels, and what leaves their range is cut off.
    """

    std: float = Field(0.1, gt=0, le=1, description="deviation of the draws")
    draws: ClassVar[int] = 3

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        # In the middle of the 2**-24 that a uniform stands for, so that 0 is no infinite draw.
        normal = torch.special.ndtri(uniforms.host.double() + 2**-25)
        shifts = _shifts(self.std * normal).to(torch.int16).to(images.device, non_blocking=True)
        return images.to(torch.int16).add_(shifts[:, :, None, None]).clamp_(0, 255).to(torch.uint8)

    def single(self, frame: Frame) -> Single:
        return _SingleLighting(self.std)

    def fault(self, frame: Frame) -> str | None:
        channels = len(frame.mean)
        return None if channels == 3 else f"must have colours to shift, got {channels} channel. Leave it out."


def _shifts(draws: Tensor) -> Tensor:
    """Of each channel in levels, N x 3, from N x 3 draws."""
    components = torch.tensor(EIGENVECTORS, dtype=torch.float64) * torch.tensor(EIGENVALUES, dtype=torch.float64)
    return (255 * draws.double() @ components.T).round()


@dataclass(frozen=True)
class _SingleLighting:
    std: float

    def __call__(self, image: Image.Image) -> Image.Image:
        shifts = _shifts(self.std * torch.randn(1, 3, dtype=torch.float64))[0].int().tolist()
        return image.point([min(max(level + shift, 0), 255) for shift in shifts for level in range(256)])


def _apply(images: Tensor, ranges: Ranges, chosen: Tensor, sign: Tensor, share: float) -> Tensor:
    """Do to each image the op of its number in `ranges`, `share` of the way to the largest magnitude.

    Args:
        images: N x ch x H x W uint8.
        ranges: the ops; nothing is done for Cutout.
        chosen: N int64, on the host.
        sign: N uniforms, on the host: geometry goes the other way where they are below 1/2.
        share: from 0 to 1.
    """
    (height, width), number = images.shape[-2:], chosen.numpy()
    low, high = np.array(list(ranges.values())).T
    numbers, moving, across, down = np.array(
        [(NAMES.index(n) if n in NAMES else 0, n in GEOMETRY, n == "TranslateX", n == "TranslateY") for n in ranges]
    ).T
    values = (share * (high - low) + low)[number]
    values = np.where(moving[number] & (sign < 0.5).numpy(), -values, values)
    sides = (across * width + down * height)[number]
    # PIL looks for a pixel at its own place plus the value, and takes the nearest; `apply_each` moves it there.
    values = np.where(sides > 0, -np.floor(values * sides + 0.5), values)
    return apply_each(images, torch.from_numpy(numbers[number]), torch.from_numpy(values))


def _boxes(first: Tensor, second: Tensor, share: float, size: tuple[int, int]) -> Tensor:
    """Where `severe` blanks: N x 4 int64, top, bottom, left and right, from N float64 uniforms each way."""
    side, ends = math.sqrt(share) * size[1], []
    for place, length in zip((first, second), size, strict=True):
        start = (place * length - side / 2).clamp(min=0).floor()
        # PIL's rectangles have their last pixel, too.
        ends += [start, (start + side).clamp(max=length).floor() + 1 if share else start]
    return torch.stack(ends, 1).long()


def _grey(channels: int) -> list[int]:
    return list(GREY) if channels == 3 else [round(sum(GREY) / 3)]


@dataclass(frozen=True)
class _Single:
    """The same for a PIL image, with PIL's ops."""

    ranges: Ranges
    n: int
    share: float

    def __call__(self, image: Image.Image) -> Image.Image:
        names = list(self.ranges)
        for _ in range(self.n):
            name = names[int(torch.randint(len(names), ()))]
            low, high = self.ranges[name]
            value = self.share * (high - low) + low
            if name in GEOMETRY and torch.rand(()) < 0.5:
                value = -value
            image = BY_PIL[name](image, value)
        return image


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def _cutout(image: Image.Image, share: float) -> Image.Image:
    first, second = torch.rand(2, 1, dtype=torch.float64)
    top, bottom, left, right = _boxes(first, second, share, (image.height, image.width))[0].tolist()
    grey = _grey(len(image.getbands()))
    made = image.copy()
    made.paste(tuple(grey) if len(grey) > 1 else grey[0], (left, top, right, bottom))
    return made


BY_PIL: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "Identity": lambda image, value: image,
    "ShearX": lambda image, value: _moved(image, 1, value, 0, 0, 1, 0),
    "ShearY": lambda image, value: _moved(image, 1, 0, 0, value, 1, 0),
    "TranslateX": lambda image, value: _moved(image, 1, 0, value * image.width, 0, 1, 0),
    "TranslateY": lambda image, value: _moved(image, 1, 0, 0, 0, 1, value * image.height),
    "Rotate": lambda image, value: image.rotate(value),
    "AutoContrast": lambda image, value: ImageOps.autocontrast(image),
    "Invert": lambda image, value: ImageOps.invert(image),
    "Equalize": lambda image, value: ImageOps.equalize(image),
    "Solarize": lambda image, value: ImageOps.solarize(image, value),  # type: ignore[arg-type]
    "Posterize": lambda image, value: ImageOps.posterize(image, int(value)),
    "Color": lambda image, value: ImageEnhance.Color(image).enhance(value),
    "Brightness": lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    "Sharpness": lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    "Cutout": _cutout,
}
"""What the papers' programs call: an image and the magnitude of `Ranges`, with its sign."""
