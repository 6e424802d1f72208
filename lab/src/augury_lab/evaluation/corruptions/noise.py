"""Noise: what sensors and transmission add to single pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from augury_lab.evaluation.corruptions.filters import is_small, normal, uniform


def gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """x + c n, n standard normal for each pixel and channel: too little light."""
    scales = (0.04, 0.06, 0.08, 0.09, 0.10) if is_small(images) else (0.08, 0.12, 0.18, 0.26, 0.38)
    return images + scales[severity - 1] * normal(images.shape, generator)


def shot_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Poisson(c x) / c: light comes in single photons, c of them for white."""
    photons = (500, 250, 100, 75, 50) if is_small(images) else (60, 25, 12, 5, 3)
    return torch.poisson(images * photons[severity - 1], generator=generator) / photons[severity - 1]


def impulse_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A share c of the values becomes 0 or 1, with equal chance: bit errors."""
    shares = (0.01, 0.02, 0.03, 0.05, 0.07) if is_small(images) else (0.03, 0.06, 0.09, 0.17, 0.27)
    share = shares[severity - 1]
    # One uniform decides both: below share / 2 pepper, from there to the share salt.
    drawn = uniform(tuple(images.shape), 0, 1, generator)
    return torch.where(drawn < share, (drawn >= share / 2).to(images.dtype), images)


def speckle_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """x + c x n, n standard normal: noise that grows with the light."""
    scales = (0.06, 0.1, 0.12, 0.16, 0.2) if is_small(images) else (0.15, 0.2, 0.35, 0.45, 0.6)
    return images + images * scales[severity - 1] * normal(images.shape, generator)
