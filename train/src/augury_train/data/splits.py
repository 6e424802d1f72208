"""A data set, split: which images train, which choose, which judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from augury.errors import UsageError
from augury_train.config import DataConfig
from augury_train.data.source import Collection, Source
from augury_train.data.subset import subset_of


@dataclass(frozen=True)
class Split:
    """Some of a source's images, in an order of its own.

    Attributes:
        source: where they are read.
        rows: N int64, which of the source's images.
    """

    source: Source
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """N int64."""
        return torch.from_numpy(np.asarray(self.source.labels, dtype=np.int64))[self.rows]

    def take(self, chosen: Tensor) -> Split:
        """The split's images of those numbers."""
        return Split(self.source, self.rows[chosen])


@dataclass(frozen=True)
class Splits:
    """The splits of a run.

    Attributes:
        train, val, test: `val` is None under the protocol `paper`, `test` where the data set brings none.
    """

    train: Split
    val: Split | None
    test: Split | None


def split(collection: Collection, config: DataConfig) -> Splits:
    """Split a data set by its own split, and by `config.split_seed` where it has none.

    Raises:
        UsageError: a split that cannot be made, or nothing to choose the best epoch on.
    """
    found = {name: Split(source, torch.arange(len(source))) for name, source in collection.splits.items()}
    test = found.get("test")
    if "all" in found:
        train, test = _hold_out(found["all"], collection.classes, config.test_fraction, config, "test_fraction")
    else:
        train = found["train"]
    val = found.get("val")
    if config.protocol == "paper":
        # The papers call what they report on validation or test, whichever the data set has.
        test, val = test or val, None
        if test is None:
            raise UsageError(
                "data.protocol=paper reports on a test split, and this data set has neither test/ nor val/. "
                "Set it with --set data.protocol=validation."
            )
    elif val is None:
        train, val = _hold_out(train, collection.classes, config.val_fraction, config, "val_fraction")
    if config.subset is not None:
        train = train.take(subset_of(train.source, train.rows, collection.classes, config))
    if config.images_per_class is not None:
        train = train.take(_first_of_each(train.labels, config.images_per_class))
    _refuse_missing(train.labels, collection.classes)
    return Splits(train, val, test)


def _hold_out(
    images: Split, classes: Sequence[str], fraction: float, config: DataConfig, key: str
) -> tuple[Split, Split]:
    """Split off a stratified share; the order within each part is random, by the split seed."""
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(images.labels, minlength=len(classes))
    if int(counts.min()) < 2:
        raise UsageError(
            f"class `{classes[int(counts.argmin())]}` has {int(counts.min())} image(s) to train on, and some are to be "
            f"held out (data.{key}={fraction}). Add images, or remove the class."
        )
    try:
        kept, held = train_test_split(
            np.arange(len(images)), test_size=fraction, random_state=config.split_seed, stratify=images.labels.numpy()
        )
    except ValueError:
        raise UsageError(
            f"data.{key}={fraction}: of {len(images)} images in {len(classes)} classes that share leaves no image of "
            f"each class on both sides. Set it with --set data.{key}=0.5, or add images."
        ) from None
    return images.take(torch.from_numpy(kept)), images.take(torch.from_numpy(held))


def _first_of_each(labels: Tensor, count: int) -> Tensor:
    rows = [torch.nonzero(labels == label).flatten()[:count] for label in labels.unique()]
    return torch.cat(rows).sort().values


def _refuse_missing(labels: Tensor, classes: Sequence[str]) -> None:
    present = set(labels.unique().tolist())
    missing = [name for label, name in enumerate(classes) if label not in present]
    if missing:
        raise UsageError(f"class `{missing[0]}`: no training image is left of it. Add images, or hold out fewer.")
