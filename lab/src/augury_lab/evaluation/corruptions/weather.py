"""Weather-like: snow, frost, fog and glaring light."""

from __future__ import annotations

import torch
from torch import Tensor

from augury_lab.evaluation.corruptions.filters import blur_along, is_small, normal, plasma, uniform, zoom

ICE = (0.78, 0.88, 0.98)
"""The colour of frost: red, green, blue."""


def brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Value + c at the same hue and saturation (HSV)."""
    shifts = (0.05, 0.1, 0.15, 0.2, 0.3) if is_small(images) else (0.1, 0.2, 0.3, 0.4, 0.5)
    value = images.amax(1, keepdim=True)
    raised = (value + shifts[severity - 1]).clamp(max=1)
    # A black pixel has no hue: it turns grey.
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-6)), raised)


def fog(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """(x + c f) m / (m + c): clouds f of a diamond-square fractal, m the brightest value of the image."""
    small = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))
    large = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
    thickness, decay = (small if is_small(images) else large)[severity - 1]
    clouds = plasma(len(images), images.shape[-2], images.shape[-1], decay, generator)
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + thickness * clouds) * brightest / (brightest + thickness)


def snow(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Flakes (magnified noise above a threshold, smeared as they fall) over the image and, turned, over that; the
    image itself fades to a bright grey."""
    small = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )
    large = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )
    mean, spread, factor, least, radius, sigma, kept = (small if is_small(images) else large)[severity - 1]
    n, _, height, width = images.shape
    flakes = zoom(mean + spread * normal((n, 1, height, width), generator), factor)
    flakes = torch.where(flakes < least, 0.0, flakes.clamp(0, 1))
    flakes = blur_along(flakes, radius, sigma, uniform((n,), -135, -45, generator))
    pale = torch.maximum(images, 1.5 * _grey(images) + 0.5)
    return kept * images + (1 - kept) * pale + flakes + flakes.rot90(2, (2, 3))


def frost(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """a x + b ice. The original takes photographs of ice; here it is grown: pale blue needles in three directions 60
    degrees apart, in patches, half as bright as white on average."""
    small = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))
    large = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
    image_share, ice_share = (small if is_small(images) else large)[severity - 1]
    ice = _ice(len(images), images.shape[-2], images.shape[-1], generator)
    colour = torch.tensor(ICE).to(images.device, non_blocking=True)[:, None, None]
    tint = colour if images.shape[1] == 3 else colour.mean()
    return image_share * images + ice_share * ice * tint


def _ice(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """count x 1 x height x width in [0, 1]."""
    side = max(height, width)
    # Needles an eighth of the side long; on photographs more than a pixel thick.
    radius, thickness = max(2, side // 8), max(1.0, side / 96)
    first = uniform((count,), 0, 60, generator)
    needles = torch.zeros(count, 1, height, width, device=generator.device)
    for turn in (0, 60, 120):
        seeds = zoom(uniform((count, 1, height, width), 0, 1, generator) ** 8, thickness)
        needles = torch.maximum(needles, blur_along(seeds, radius, radius / 2, first + turn))
    spread, mean = torch.std_mean(needles, (1, 2, 3), keepdim=True)
    crystals = (needles - mean) / spread.clamp(min=1e-6)
    patches = plasma(count, height, width, 2.0, generator)
    patches = patches - patches.mean((1, 2, 3), keepdim=True)
    return (0.5 + 0.22 * crystals * (1 + patches) + 0.5 * patches).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma, N x 1 x H x W (OpenCV's weights)."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return 0.299 * red + 0.587 * green + 0.114 * blue
