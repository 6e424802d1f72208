"""Shifts of growing strength: parts hidden, other crops, other colours.

The program of Atienza (WACV 2022, arXiv 2110.10536) evaluates ImageNet under `RandomResizedCrop(scale=(0.2, 1))` and
under `ColorJitter(brightness=1, contrast=1, saturation=1)`; `crop` at 0.2 and `jitter` at 1 are those, the other
strengths lead there. It publishes none for occlusion: a square at a random place, as large as a share of the side, is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from augury.errors import UsageError

ATTEMPTS = 10
"""How often torchvision draws a box until one fits; after that it takes the whole."""

Shifting = Callable[[Tensor, float, torch.Generator], Tensor]
"""Images N x ch x H x W float32 in [0, 1], a strength, what draws -> the same shape, in [0, 1]."""


@dataclass(frozen=True)
class Shift:
    """One kind of shift.

    Attributes:
        apply: shifts images.
        strengths: to evaluate at, from the least shift to the greatest.
        axis: what a strength is.
        summary: what happens to an image.
    """

    apply: Shifting
    strengths: tuple[float, ...]
    axis: str
    summary: str


def occlusion(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Blank a square of `share` of the shorter side, wholly inside, at a place of its own in each image.

    It gets the image's own mean colour, so that the blank itself looks like no object and shifts no statistics.

    Raises:
        UsageError: a share outside [0, 1].
    """
    _refuse_outside("occlusion", share)
    height, width = images.shape[-2:]
    size = round(share * min(height, width))
    drawn = _uniform((len(images), 2), generator)
    top, left = (drawn[:, 0] * (height - size + 1)).long(), (drawn[:, 1] * (width - size + 1)).long()
    rows, columns = _between(top, size, height), _between(left, size, width)
    hidden = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(hidden, images.mean((2, 3), keepdim=True), images)


def centre_crop(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Cut out the middle `share` of each side, in whole pixels, and magnify it to the old size (bilinear).

    Raises:
        UsageError: a share outside [0, 1].
    """
    _refuse_outside("centre_crop", share)
    height, width = images.shape[-2:]
    h, w = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - h) // 2, (width - w) // 2
    part = images[..., top : top + h, left : left + w]
    return interpolate(part, (height, width), mode="bilinear", align_corners=False).clamp_(0, 1)


def crop(images: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """Cut out a random box of `least` to all of the area, its sides 3:4 to 4:3, and resize it to the old size
    (torchvision's RandomResizedCrop, bilinear; a box that does not fit ten times is the whole image).

    Raises:
        UsageError: a least area outside [0, 1].
    """
    _refuse_outside("crop", least)
    n, (height, width) = len(images), images.shape[-2:]
    drawn = _uniform((n, 2 * ATTEMPTS + 2), generator)
    area = height * width * (least + (1 - least) * drawn[:, :ATTEMPTS])
    aspect = torch.exp((2 * drawn[:, ATTEMPTS : 2 * ATTEMPTS] - 1) * math.log(4 / 3))
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    good = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    first = good.int().argmax(1, keepdim=True)
    fits = good.any(1)
    w = torch.where(fits, w.gather(1, first)[:, 0], width)
    h = torch.where(fits, h.gather(1, first)[:, 0], height)
    top = (drawn[:, -2] * (height - h + 1)).floor()
    left = (drawn[:, -1] * (width - w + 1)).floor()
    rows, columns = _resampling(top, h, height), _resampling(left, w, width)
    return (rows[:, None] @ images @ columns[:, None].mT).clamp_(0, 1)


def jitter(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and saturation by factors drawn from [max(0, 1 - s), 1 + s] for each image, one after
    the other (torchvision's ColorJitter, which also draws the order). Grey images have no saturation.

    Raises:
        UsageError: a negative strength.
    """
    if not strength >= 0:
        raise UsageError(f"jitter: the strength must be >= 0, got {strength}.")
    low = max(0.0, 1 - strength)
    factors = low + (1 + strength - low) * _uniform((len(images), 3), generator)
    bright, contrasted, saturated = factors[:, :, None, None, None].unbind(1)
    made = (images * bright).clamp_(0, 1)
    made = _blend(_grey(made).mean((2, 3), keepdim=True), made, contrasted)
    return made if images.shape[1] == 1 else _blend(_grey(made), made, saturated)


SHIFTS: dict[str, Shift] = {
    "occlusion": Shift(
        occlusion,
        (0.1, 0.2, 0.3, 0.4, 0.5),
        "share of the side that is blanked",
        "a random square is blanked",
    ),
    "crop": Shift(crop, (0.8, 0.6, 0.4, 0.2, 0.08), "least share of the area", "a random box is magnified"),
    "centre_crop": Shift(centre_crop, (0.9, 0.8, 0.7, 0.6, 0.5), "share of the side", "the middle is magnified"),
    "jitter": Shift(
        jitter, (0.2, 0.4, 0.6, 0.8, 1.0), "strength of the jitter", "brightness, contrast and saturation change"
    ),
}
"""All of them by name, in the order of a table."""


def _refuse_outside(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UsageError(f"{name}: a share must be from 0 to 1, got {share}.")


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _between(start: Tensor, size: int, side: int) -> Tensor:
    """N x side bool: from `start` on, `size` pixels."""
    place = torch.arange(side, device=start.device)
    return (place >= start[:, None]) & (place < start[:, None] + size)


def _resampling(start: Tensor, length: Tensor, side: int) -> Tensor:
    """The weights that magnify a piece of each row of pixels to the whole: N x side x side, bilinear, rows sum to 1."""
    pixel = torch.arange(side, device=start.device)
    centres = (pixel[:, None] + 0.5) * (length / side)[:, None, None] - 0.5
    # Beyond the piece its outermost pixels are repeated.
    centres = torch.minimum(centres.clamp(min=0), (length - 1)[:, None, None]) + start[:, None, None]
    return (1 - (pixel - centres).abs()).clamp(min=0)


def _blend(one: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return (one + (other - one) * factors).clamp_(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma, N x 1 x H x W (torchvision's weights)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue
