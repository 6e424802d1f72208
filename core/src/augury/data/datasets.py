"""Data sets as uint8 images in memory, split into training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from augury.config import DataConfig
from augury.data.folder import read_image_folder
from augury.errors import UsageError


@dataclass(frozen=True)
class ImageSet:
    """Images and their classes.

    Attributes:
        images: N x ch x H x W uint8.
        labels: N int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> ImageSet:
        return ImageSet(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class DataSet:
    """A data set ready to train on.

    Attributes:
        train, val, test: the splits; `test` is None where the data set brings `val` but no `test`.
        classes: their names; a label is an index into them.
        mean, std: of each channel over the training images, on the scale of [0, 1].
        transforms: the usual pipeline for these images.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet | None
    classes: list[str]
    mean: list[float]
    std: list[float]
    transforms: list[str]

    @property
    def image_size(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def check_dataset(config: DataConfig) -> None:
    """Refuse, before anything is read, what no data set can be made of.

    Raises:
        UsageError: an unknown data set, or settings that do not fit it.
    """
    if config.dataset == "digits":
        if config.image_size not in (None, 8):
            raise UsageError(f"data.image_size={config.image_size}: digits are 8 pixels wide. Leave it unset.")
    elif not Path(config.dataset).is_dir():
        raise UsageError(
            f"unknown data set `{config.dataset}`. Known: digits, or a folder with one subfolder of images for each "
            "class (or with train/, val/, test/ of such)."
        )


def load_dataset(config: DataConfig, model_size: int) -> DataSet:
    """Load, split and measure a data set.

    Args:
        config: the run's data section.
        model_size: side in pixels that images of various sizes are brought to when the config sets none.

    Raises:
        UsageError: an unknown data set, an unreadable image, an empty class, or a split that cannot be made.
    """
    check_dataset(config)
    if config.dataset == "digits":
        splits, classes, transforms = _digits(), [str(digit) for digit in range(10)], ["crop:1"]
    else:
        found, classes = read_image_folder(Path(config.dataset), config.image_size, model_size)
        splits = {
            name: ImageSet(torch.from_numpy(images), torch.from_numpy(labels))
            for name, (images, labels) in found.items()
        }
        transforms = [f"crop:{max(1, next(iter(splits.values())).images.shape[-1] // 8)}", "flip"]
    train, val, test = _split(splits, config)
    if config.images_per_class is not None:
        train = train.take(_first_of_each(train.labels, config.images_per_class))
    mean, std = _channel_statistics(train.images)
    return DataSet(train, val, test, list(classes), mean, std, transforms)


def _digits() -> dict[str, ImageSet]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Grey levels are 0 to 16 in the source.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return {"all": ImageSet(torch.from_numpy(images), torch.from_numpy(digits.target.astype(np.int64)))}


def _split(splits: dict[str, ImageSet], config: DataConfig) -> tuple[ImageSet, ImageSet, ImageSet | None]:
    test = splits.get("test")
    if "all" in splits:
        train, test = _hold_out(splits["all"], config.test_fraction, config.split_seed, "data.test_fraction")
    else:
        train = splits["train"]
    if "val" in splits:
        return train, splits["val"], test
    train, val = _hold_out(train, config.val_fraction, config.split_seed, "data.val_fraction")
    return train, val, test


def _hold_out(images: ImageSet, fraction: float, seed: int, key: str) -> tuple[ImageSet, ImageSet]:
    """Split off a stratified share; the order within each part is random, by `seed`."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held = train_test_split(
            np.arange(len(images)), test_size=fraction, random_state=seed, stratify=images.labels.numpy()
        )
    except ValueError as error:
        raise UsageError(
            f"{key}={fraction}: {len(images)} images cannot be split so: {error} Change {key} or add images."
        ) from None
    return images.take(torch.from_numpy(kept)), images.take(torch.from_numpy(held))


def _first_of_each(labels: Tensor, count: int) -> Tensor:
    rows = [torch.nonzero(labels == label).flatten()[:count] for label in labels.unique()]
    return torch.cat(rows).sort().values


def _channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Exact mean and standard deviation of each channel, by counting the 256 levels: no float copy of the images is
    made."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        average = (counts @ levels) / counts.sum()
        variance = (counts @ (levels - average) ** 2) / counts.sum()
        mean.append(float(average))
        std.append(max(float(variance) ** 0.5, 1 / 255))
    return mean, std
