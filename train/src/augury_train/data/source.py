"""Images that can be read one at a time, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.int64]


class Source(Protocol):
    """Images of one split and their classes. It is sent to worker processes, so it holds no open file."""

    labels: Labels
    """N int64."""
    channels: int
    """1: `read` gives images of mode L, 3: of mode RGB."""
    size: tuple[int, int] | None
    """(height, width) where all images share one, else None."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Image.Image:
        """Image `index`, upright, decoded, 8 bits a channel.

        Raises:
            UsageError: it cannot be read; the message names it and says what to do.
        """

    def name(self, index: int) -> str:
        """What messages call image `index`: its path, say."""


@dataclass
class ArraySource:
    """Images that are in memory already.

    Attributes:
        images: N x ch x H x W uint8, ch 1 or 3.
        labels: N int64.
        title: what messages call the images, with their number behind.
    """

    images: NDArray[np.uint8]
    labels: Labels
    title: str = "image"
    channels: int = field(init=False)
    size: tuple[int, int] | None = field(init=False)

    def __post_init__(self) -> None:
        self.channels = self.images.shape[1]
        self.size = (self.images.shape[2], self.images.shape[3])

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        """Image `index`, mode L or RGB."""
        pixels = self.images[index]
        return Image.fromarray(pixels[0] if self.channels == 1 else pixels.transpose(1, 2, 0))

    def name(self, index: int) -> str:
        """The title and the number."""
        return f"{self.title} {index}"


@dataclass(frozen=True)
class Collection:
    """What a data set's name stands for, before it is split.

    Attributes:
        splits: `train` with or without `val` and `test`, or `all` where the images are not split yet.
        classes: their names; a label is an index into them.
        transforms: the usual pipeline for these images, None where it follows from their size.
        mean, std: of each channel on the scale of [0, 1] as published, None where the model's are used.
        skipped: images left out because they cannot be read.
        notes: what the user may not expect, a line each.
    """

    splits: dict[str, Source]
    classes: list[str]
    transforms: list[str] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    skipped: Sequence[str] = ()
    notes: Sequence[str] = ()
