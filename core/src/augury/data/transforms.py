"""Batched transforms: each image of a batch gets its own draw, and no loop runs over images.

A transform takes N x ch x H x W images and N x `draws` uniforms in [0, 1), so what it does to an image is a function
of that image's numbers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from augury.errors import UsageError, unknown


class Transform(Protocol):
    """One word of a pipeline."""

    draws: int
    """Uniforms it takes for each image."""
    normalised: bool
    """Whether it acts on normalised float images, after all that act on 8-bit ones."""

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Crop:
    """Pad by `padding` black pixels on every side and crop back to the size at a random place (`crop:4`)."""

    padding: int
    draws = 2
    normalised = False

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        places = 2 * self.padding + 1
        top, left = (uniforms * places).long().clamp_(max=places - 1).unbind(1)
        windows = F.pad(images, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        return windows[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class Flip:
    """Mirror left to right with probability 1/2 (`flip`)."""

    draws = 1
    normalised = False

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        return torch.where(uniforms[:, :, None, None] < 0.5, images.flip(-1), images)


@dataclass(frozen=True)
class Cutout:
    """Blank a square of side `size` around a random pixel, cut off at the border (`cutout:16`; DeVries and Taylor
    2017, arXiv 1708.04552).

    It blanks the normalised image with zeros, which is the data set's mean.
    """

    size: int
    draws = 2
    normalised = True

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        inside_y = self._inside(height, uniforms[:, 0], images.device)
        inside_x = self._inside(width, uniforms[:, 1], images.device)
        return images.masked_fill((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0.0)

    def _inside(self, side: int, uniforms: Tensor, device: torch.device) -> Tensor:
        start = (uniforms * side).long().clamp_(max=side - 1) - self.size // 2
        place = torch.arange(side, device=device)
        return (place >= start[:, None]) & (place < start[:, None] + self.size)


_WORDS = {"crop": (Crop, "padding in pixels"), "flip": (Flip, ""), "cutout": (Cutout, "side in pixels")}


def parse(words: Sequence[str], key: str) -> list[Transform]:
    """Read the words of a pipeline.

    Args:
        words: `crop:4`, `flip`, `cutout:16`, in the order of application.
        key: the setting they come from, for the messages.

    Raises:
        UsageError: an unknown word, a missing or wrong number, or a word for 8-bit images after one for normalised
        ones.
    """
    transforms: list[Transform] = []
    for word in words:
        name, _, argument = word.partition(":")
        if name not in _WORDS:
            raise UsageError(f"{key}: " + unknown("transform", name, _WORDS))
        make, meaning = _WORDS[name]
        if bool(meaning) != bool(argument) or (argument and not (argument.isdecimal() and int(argument) > 0)):
            allowed = f"{name}:N, N the {meaning}, a whole number > 0" if meaning else f"{name} alone"
            raise UsageError(
                f'{key}: transform `{word}` must be {allowed}. Example: --set {key}="crop:4 flip cutout:16".'
            )
        transform = make(int(argument)) if meaning else make()
        if not transform.normalised and any(t.normalised for t in transforms):
            raise UsageError(
                f"{key}: `{word}` works on 8-bit images and must stand before cutout, which works on normalised ones."
            )
        transforms.append(transform)
    return transforms


class Pipeline:
    """A chain of transforms with the normalisation at its place."""

    def __init__(
        self, transforms: Sequence[Transform], mean: Sequence[float], std: Sequence[float], device: torch.device
    ) -> None:
        """Chain `transforms`; `mean` and `std` are of each channel on the scale of [0, 1]."""
        self._bytes = [t for t in transforms if not t.normalised]
        self._floats = [t for t in transforms if t.normalised]
        self.draws = sum(t.draws for t in transforms)
        std_ = torch.tensor(std, device=device)[:, None, None]
        self._scale = 1 / (255 * std_)
        self._shift = -torch.tensor(mean, device=device)[:, None, None] / std_

    def __call__(self, images: Tensor, uniforms: Tensor) -> Tensor:
        """Transform and normalise.

        Args:
            images: N x ch x H x W uint8.
            uniforms: N x D in [0, 1), D at least `draws`.

        Returns:
            N x ch x H x W float32.
        """
        at = 0
        for transform in self._bytes:
            images, at = transform(images, uniforms[:, at : at + transform.draws]), at + transform.draws
        images = torch.addcmul(self._shift, images.float(), self._scale)
        for transform in self._floats:
            images, at = transform(images, uniforms[:, at : at + transform.draws]), at + transform.draws
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise alone: what evaluation sees."""
        return torch.addcmul(self._shift, images.float(), self._scale)
