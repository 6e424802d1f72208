"""What sources whose images come as encoded bytes have in common: decoding, leaving out what cannot be decoded, and
numbering the classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np
from PIL import Image

from augury.errors import UsageError, counted
from augury_train.data.decoding import UnreadableError, decode_rgb, unreadable
from augury_train.data.index import Integers
from augury_train.data.source import Collection, Labels, Source
from augury_train.data.split_names import check_classes
from augury_train.open_files import too_many_open_files

Item = TypeVar("Item")


@dataclass
class ContentSource(ABC):
    """Encoded images of any size, decoded when they are read.

    Attributes:
        labels: N int64.
    """

    labels: Labels
    channels: int = field(default=3, init=False)
    size: tuple[int, int] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def content(self, index: int) -> BinaryIO:
        """The encoded bytes of image `index`."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What messages call image `index`."""

    @abstractmethod
    def take(self, rows: Integers) -> Self:
        """The images of those numbers."""

    def read(self, index: int) -> Image.Image:
        """Image `index`, upright, mode RGB."""
        try:
            return self._decoded(index)
        except UnreadableError as error:
            raise unreadable(self.name(index), error) from None

    def reason(self, index: int) -> str | None:
        """Why image `index` cannot be decoded, None if it can."""
        try:
            self._decoded(index)
        except UnreadableError as error:
            return str(error)
        return None

    def _decoded(self, index: int) -> Image.Image:
        try:
            content = self.content(index)
        except OSError as error:
            if (too_many := too_many_open_files(error)) is not None:
                raise too_many from None
            raise UnreadableError(error.strerror or error) from None
        with content:
            return decode_rgb(content)


def collect(
    title: str,
    found: Mapping[str, tuple[Sequence[Any], list[Item]]],
    source: Callable[[list[Item], Labels], ContentSource],
    order: Callable[[Any], Any],
    skip_bad: bool,
    classes: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> Collection:
    """Number the classes of what was found and leave out what cannot be decoded.

    Args:
        title: what messages call the data set.
        found: classes and items of the images, by split.
        source: makes a source of items and labels.
        order, classes: see `numbered`.
        skip_bad: decode each image once, and leave out those that fail.
        notes: what the user may not expect, a line each.

    Raises:
        UsageError: as for `numbered`; a class whose images are all bad.
    """
    labels, names = numbered(title, {split: kinds for split, (kinds, _) in found.items()}, order, classes)
    notes = [*notes, *check_labels(title, names, labels)]
    splits: dict[str, Source] = {}
    skipped: list[str] = []
    for split, (kinds, items) in found.items():
        made = source(items, labels[split])
        if skip_bad:
            made, bad = _sift(made)
            skipped += bad
            if len(set(made.labels.tolist())) < len(set(kinds)):
                raise UsageError(f"{title}: none of the {split} images of a class can be read. {bad[0]}.")
        splits[split] = made
    return Collection(splits, names, skipped=skipped, notes=notes)


def check_labels(title: str, names: Sequence[str], labels: Mapping[str, Labels]) -> list[str]:
    """Refuse classes that are named like splits; returns notes on those that are taken for classes.

    Args:
        title: what messages call the data set.
        names: of the classes.
        labels: N int64 by split.

    Raises:
        UsageError: see `check_classes`.
    """
    every = np.concatenate(list(labels.values()))
    above = "" if "all" in labels else "train"
    return check_classes(
        title, names, lambda name: counted(int((every == names.index(name)).sum()), "image"), above=above
    )


def numbered(
    title: str,
    found: Mapping[str, Sequence[Any]],
    order: Callable[[Any], Any],
    classes: Sequence[str] | None = None,
) -> tuple[dict[str, Labels], list[str]]:
    """Number classes.

    Args:
        title: what messages call the data set.
        found: class of each image, by split, training first.
        order: key by which classes are sorted.
        classes: names of all classes, where they are known; the classes in `found` are then indices into them.

    Returns:
        labels N int64 by split, and the names of the classes.

    Raises:
        UsageError: fewer than 2 classes, or one that training does not have.
    """
    first = next(iter(found))
    kinds: list[Any] = list(range(len(classes))) if classes else sorted(set(found[first]), key=order)
    if len(kinds) < 2:
        raise UsageError(f"{title}: found {len(kinds)} class(es), at least 2 are needed.")
    numbers = {kind: label for label, kind in enumerate(kinds)}
    for split, given in found.items():
        strange = next((kind for kind in given if kind not in numbers), None)
        if strange is not None:
            raise UsageError(f"{title}: {split} has class `{strange}`, which training does not have. Remove it.")
    labels = {split: np.array([numbers[k] for k in given], dtype=np.int64) for split, given in found.items()}
    return labels, list(classes or map(str, kinds))


def _sift(source: ContentSource) -> tuple[ContentSource, list[str]]:
    """The images that can be decoded, and the names of those that cannot, with the reasons."""
    with ThreadPoolExecutor() as pool:
        reasons = list(pool.map(source.reason, range(len(source))))
    good = np.array([number for number, reason in enumerate(reasons) if reason is None], dtype=np.int64)
    bad = [f"{source.name(number)}: {reason}" for number, reason in enumerate(reasons) if reason is not None]
    return source.take(good), bad
