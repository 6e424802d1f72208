"""What a word of a pipeline is: one transform in two forms that mean the same.

Batched, on the training device: N x ch x H x W images at once, each with its own draw, and no loop over images. What
is done to an image is a function of that image's row of uniforms alone. Single, in a worker process: one PIL image,
with torchvision's transform of that kind, which draws from torch's generator (the loader seeds it for each image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from PIL import Image
from torch import Tensor

from augury.validation import Strict

Single = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Frame:
    """What a pipeline works towards.

    Attributes:
        size: (height, width) of the images that leave it.
        mean: of each channel on the scale of [0, 1]; what blanked pixels of 8-bit images are set to.
        interpolation: `bilinear` or `bicubic`, where images are resized.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    interpolation: str = "bilinear"

    @property
    def blank(self) -> list[int]:
        """The mean as an 8-bit pixel, a value for each channel."""
        return [round(255 * value) for value in self.mean]


@dataclass(frozen=True)
class Uniforms:
    """N x D uniforms in [0, 1), the same numbers on the host and on the device: deciding by the host's ones which rows
    a transform takes never makes the host wait."""

    host: Tensor
    device: Tensor

    def columns(self, start: int, count: int) -> Uniforms:
        """`count` columns from `start` on."""
        return Uniforms(self.host[:, start : start + count], self.device[:, start : start + count])

    def rows(self, chosen: Tensor) -> Uniforms:
        """The rows of those numbers; `chosen` is on the host."""
        there = chosen.to(self.device.device, non_blocking=True)
        return Uniforms(self.host[chosen], self.device[there])


class Transform(Protocol):
    """One word of a pipeline; its pydantic fields are the word's arguments, the first one also without its name."""

    @property
    def draws(self) -> int:
        """Uniforms it takes for each image."""

    @property
    def last(self) -> bool:
        """Whether it acts on normalised images where no word for 8-bit ones follows."""

    def fault(self, frame: Frame) -> str | None:
        """Why it cannot make such images, and what to do: what a line about the word goes on with; None if it can."""

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        """N x ch x H x W uint8 -> the same with other pixels (or another size); float32 likewise where `last`."""

    def single(self, frame: Frame) -> Single:
        """The same for one PIL image of mode L or RGB."""


class Word(Strict):
    """What most words have in common: they act on 8-bit images, of any size."""

    last: ClassVar[bool] = False

    def fault(self, frame: Frame) -> str | None:
        return None


def pick(uniforms: Tensor, count: int) -> Tensor:
    """A whole number below `count` from each uniform, int64."""
    return (uniforms * count).long().clamp_(max=count - 1)
