"""Blur: what lenses, glass and movement do."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from augury_lab.evaluation.corruptions.filters import blur_along, correlate, disk, gaussian, is_small, uniform, zoom


def gaussian_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A Gaussian of deviation c pixels."""
    sigmas = (0.4, 0.6, 0.7, 0.8, 1) if is_small(images) else (1, 2, 3, 4, 6)
    return gaussian(images, sigmas[severity - 1])


def defocus_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A disk of radius c pixels with a softened border."""
    small = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))
    large = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
    return correlate(images, disk(*(small if is_small(images) else large)[severity - 1]))


def motion_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A smear of (radius, sigma) pixels along a line between -45 and 45 degrees, as ImageMagick makes it."""
    small = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))
    large = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    radius, sigma = (small if is_small(images) else large)[severity - 1]
    return blur_along(images, radius, sigma, uniform((len(images),), -45, 45, generator))


def zoom_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """The mean of the image and of it magnified by growing factors: a camera that moves towards it.

    The original cuts off to whole pixels before it magnifies; this does not, so that it is centred at any size.
    """
    small = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
    large = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    factors = np.arange(1, *(small if is_small(images) else large)[severity - 1]).tolist()
    total = images.clone()
    for factor in factors:
        total += zoom(images, factor)
    return total / (len(factors) + 1)


def glass_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Blur, let each pixel change places with a random one up to d pixels away, several times, and blur again.

    The original goes from pixel to pixel; here those 2d apart, whose neighbourhoods do not meet, go at the same time.
    """
    small = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))
    large = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
    sigma, reach, rounds = (small if is_small(images) else large)[severity - 1]
    blurred = gaussian(images, sigma)
    places = _shuffled(len(images), (images.shape[-2], images.shape[-1]), reach, rounds, generator)
    moved = blurred.flatten(2).gather(2, places[:, None].expand(-1, images.shape[1], -1))
    return gaussian(moved.view_as(images), sigma)


def _shuffled(count: int, size: tuple[int, int], reach: int, rounds: int, generator: torch.Generator) -> Tensor:
    """Where each pixel comes from: count x H * W int64, a permutation a row."""
    (height, width), device = size, generator.device
    places = torch.arange(height * width, device=device).repeat(count, 1)
    tile = 2 * reach
    for phase in range(rounds * tile**2):
        down, across = divmod(phase % tile**2, tile)
        # From the last to the first, as the original goes; no neighbourhood may leave the image.
        rows = torch.arange(height - reach - down, reach, -tile, device=device)
        columns = torch.arange(width - reach - across, reach, -tile, device=device)
        one = (rows[:, None] * width + columns).flatten().repeat(count, 1)
        steps = torch.randint(-reach, reach, (2, *one.shape), generator=generator, device=device)
        other = one + steps[0] * width + steps[1]
        from_one, from_other = places.gather(1, one), places.gather(1, other)
        places.scatter_(1, one, from_other)
        places.scatter_(1, other, from_one)
    return places
