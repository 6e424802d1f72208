"""How a data set's images enter the network: their size, crop and normalisation, and the data set with all of that
decided."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from augury.errors import UsageError, refuse_all
from augury_train.config import DataConfig
from augury_train.data.decoded import recall, worth_keeping
from augury_train.data.geometry import centre_square
from augury_train.data.source import Collection
from augury_train.data.splits import Split, Splits
from augury_train.data.transforms import Frame

Progress = Callable[[int], None]
MOST = 16_384
"""Pixels of a side that is kept of an image."""
CHUNK = 64
"""Images that a thread decodes before it says so."""


@dataclass(frozen=True)
class ImageFormat:
    """The images that a network gets.

    Attributes:
        channels: 1 or 3.
        side: pixels, both ways.
        kept: side of the centre square that is kept of each image before a pipeline crops it; at least `side`.
        interpolation: `bilinear` or `bicubic`.
        mean, std: of each channel on the scale of [0, 1].
        test: the same for validation and test images, where they are shown at another size.
    """

    channels: int
    side: int
    kept: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    test: ImageFormat | None = None

    @property
    def frame(self) -> Frame:
        """What pipelines work towards."""
        return Frame((self.side, self.side), self.mean, self.interpolation)

    @property
    def size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.side, self.side


def choose_format(
    config: DataConfig, collection: Collection, model: Mapping[str, Any], pretrained: bool
) -> ImageFormat:
    """Decide size, crop and normalisation: what the settings say; else, for a named data set and fresh weights, what it
    is known for; else what the model was made for.

    Args:
        config: the run's data section.
        collection: the images.
        model: timm's data config of the model: input_size, crop_pct, interpolation, mean, std.
        pretrained: whether the network starts from trained weights, which expect the model's own input.

    Raises:
        UsageError: numbers of channels that do not fit the images.
    """
    source = next(iter(collection.splits.values()))
    own = collection.mean is not None and collection.std is not None and not pretrained
    size = source.size[0] if own and source.size else int(model["input_size"][-1])
    crop_pct = 1.0 if own else float(model["crop_pct"])
    side = config.image_size or size
    mean = config.mean or (collection.mean if own else None) or list(model["mean"])
    std = config.std or (collection.std if own else None) or list(model["std"])
    interpolation = config.interpolation or ("bilinear" if model["interpolation"] == "bilinear" else "bicubic")
    refuse_all(
        [
            f"config: key `data.{key}` must have {source.channels} number(s), one for each channel, got {given}."
            for key, given in (("mean", config.mean), ("std", config.std))
            if given is not None and len(given) != source.channels
        ]
    )
    form = ImageFormat(
        channels=source.channels,
        side=side,
        kept=_kept(side, config.crop_pct or crop_pct),
        interpolation=interpolation,
        mean=_for_channels(mean, source.channels),
        std=_for_channels(std, source.channels),
    )
    test = config.test_size or side
    largest = _kept(max(side, test), config.crop_pct or crop_pct)
    if largest > MOST:
        raise UsageError(
            f"config: key `data.crop_pct` makes images of {largest} pixels a side; {MOST:,} "
            "are allowed. Set it with --set data.crop_pct=1, or lower data.image_size."
        )
    if test == side:
        return form
    return replace(form, test=replace(form, side=test, kept=_kept(test, config.crop_pct or crop_pct)))


def _kept(side: int, crop_pct: float) -> int:
    """The side of which a centre crop of `side` keeps that share."""
    return max(side, int(side / crop_pct))


def crop_share(side: int, kept: int) -> float:
    """The `crop_pct` that makes just `kept` of `side`, here and in timm: the quotient may lead to a pixel less."""
    share = side / kept
    while int(side / share) < kept:
        share = math.nextafter(share, 0)
    return share


def _for_channels(values: list[float], channels: int) -> tuple[float, ...]:
    """A value for each channel: their average where a model for colours gets grey images."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


@dataclass(frozen=True)
class DataSet:
    """A data set ready to train on.

    Attributes:
        splits: which images train, choose and judge.
        classes: their names; a label is an index into them.
        format: how the images enter the network.
        transforms: the words of the usual pipeline.
        skipped: images that were left out because they cannot be read.
        notes: what the user may not expect of it, a line each.
    """

    splits: Splits
    classes: list[str]
    format: ImageFormat
    transforms: list[str]
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    _decoded: dict[int, tuple[Split, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def images(self) -> int:
        """In all splits."""
        return sum(map(len, self._splits))

    @property
    def _splits(self) -> list[Split]:
        return [s for s in (self.splits.train, self.splits.val, self.splits.test) if s is not None]

    @property
    def bytes(self) -> int:
        """What all splits take up in memory, decoded."""
        return sum(
            len(split) * self.format_of(split).channels * self.format_of(split).kept ** 2 for split in self._splits
        )

    def format_of(self, split: Split) -> ImageFormat:
        """How the images of a split enter the network."""
        return self.format if split is self.splits.train else self.format.test or self.format

    def pixels(self, split: Split, progress: Progress | None = None) -> Tensor:
        """The images of a split, decoded once and kept: N x ch x kept x kept uint8 on the host."""
        form = self.format_of(split)
        if id(split) not in self._decoded:
            # With the split itself: the number of one that is gone would come to stand for another.
            alike = [s for s in self._splits if s.source is split.source and self.format_of(s) == form]
            together = sum(map(len, alike))
            most = 4 * together > len(split.source)
            self._decoded[id(split)] = split, decode(split, form, progress, keep=most)
        return self._decoded[id(split)][1]


def usual_transforms(collection: Collection, side: int) -> list[str]:
    """The words of `data.base` where nothing is set: the named data set's; small images move a little, photographs are
    cropped."""
    if collection.transforms is not None:
        return collection.transforms
    return [f"crop:{max(1, side // 8)}", "flip"] if side <= 64 else ["random_resized_crop:0.35", "flip"]


def decode(split: Split, form: ImageFormat, progress: Progress | None = None, *, keep: bool = False) -> Tensor:
    """Decode a split: N x ch x kept x kept uint8.

    Args:
        split: the images.
        form: the size that is kept of each.
        progress: told how many more images are done.
        keep: decode all images of the source, and keep them on disk for the next start if they are many.

    Raises:
        UsageError: an image that cannot be read.
    """
    source = split.source
    whole = getattr(source, "images", None)
    stamp = getattr(source, "stamp", None)
    shape = (len(source), form.channels, form.kept, form.kept)
    if whole is not None and source.size == (form.kept, form.kept):
        if progress is not None:
            progress(len(split))
    elif keep and stamp is not None and worth_keeping(shape):
        everything = Split(source, torch.arange(len(source)))
        whole = recall(stamp, shape, form.interpolation, lambda out: _decode_into(out, everything, form, progress))
    else:
        whole = np.empty((len(split), *shape[1:]), dtype=np.uint8)
        _decode_into(whole, split, form, progress)
        return torch.from_numpy(whole)
    return torch.from_numpy(np.ascontiguousarray(whole[split.rows.numpy()]))


def _decode_into(out: NDArray[np.uint8], split: Split, form: ImageFormat, progress: Progress | None) -> None:
    source, rows = split.source, split.rows.tolist()

    def read(places: range) -> int:
        for place in places:
            out[place] = pixels_of(centre_square(source.read(rows[place]), form.kept, form.interpolation))
        return len(places)

    chunks = [range(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    with ThreadPoolExecutor() as pool:
        # Consumed, so that the first image that cannot be read stops the rest.
        for done in pool.map(read, chunks):
            if progress is not None:
                progress(done)


def pixels_of(image: Image.Image) -> np.ndarray[Any, Any]:
    """A PIL image of mode L or RGB as ch x H x W uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
