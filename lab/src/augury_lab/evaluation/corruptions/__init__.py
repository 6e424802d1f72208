"""Common corruptions at five severities (Hendrycks and Dietterich, ICLR 2019, arXiv 1903.12261), made on the device.

Strengths are the published ones: those of CIFAR-10-C for images whose sides are up to 64 pixels, those of ImageNet-C
for larger ones. Where the original needs photographs, a file format or a loop over pixels, the function says what
stands in for it: scores compare runs evaluated here with each other, not with published tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from augury.errors import UsageError
from augury_lab.evaluation.corruptions import blur, digital, jpeg, noise, weather

Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
"""Images N x ch x H x W float32 in [0, 1] (1 or 3 channels), severity 1 to 5, what draws -> the same, of 8 bits."""

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8
"""Side in pixels below which nothing could be told from its corruption."""


def _finished(make: Corruption) -> Corruption:
    """The corruption with its arguments checked and its result as 8-bit images have it."""

    def corrupt(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
        if severity not in SEVERITIES:
            raise UsageError(f"severity must be one of 1, 2, 3, 4, 5, got {severity!r}.")
        if min(images.shape[-2:]) < SMALLEST:
            size = "x".join(str(side) for side in images.shape[-2:])
            raise UsageError(f"corruptions need images of at least {SMALLEST}x{SMALLEST} pixels, got {size}.")
        return make(images, severity, generator).mul(255).round_().clamp_(0, 255).div_(255)

    corrupt.__name__, corrupt.__doc__ = make.__name__, make.__doc__
    return corrupt


_PARTS: dict[str, tuple[Corruption, ...]] = {
    "noise": (noise.gaussian_noise, noise.shot_noise, noise.impulse_noise, noise.speckle_noise),
    "blur": (blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur, blur.gaussian_blur),
    "weather": (weather.snow, weather.frost, weather.fog, weather.brightness),
    "digital": (
        digital.contrast,
        digital.elastic_transform,
        digital.pixelate,
        jpeg.jpeg_compression,
        digital.saturate,
    ),
}

GROUPS: dict[str, tuple[str, ...]] = {group: tuple(make.__name__ for make in parts) for group, parts in _PARTS.items()}
"""The names by group, in the order of a table."""

CORRUPTIONS: dict[str, Corruption] = {
    name: _finished(make) for group, parts in _PARTS.items() for name, make in zip(GROUPS[group], parts, strict=True)
}
"""All of them by name."""


def applicable(channels: int) -> list[str]:
    """The corruptions that change images of so many channels: grey ones have no saturation."""
    return [name for name in CORRUPTIONS if channels == 3 or name != "saturate"]
