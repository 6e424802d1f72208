"""Images of other things: does the network's confidence tell them from its own?"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from augury.errors import UsageError
from augury.outside import given_path
from augury_lab.evaluation.calibration import confidence_of
from augury_lab.evaluation.subject import Subject
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.decoding import SUFFIXES, to_rgb
from augury_train.data.folder import FolderSource
from augury_train.data.index import Names
from augury_train.data.named import NAMES
from augury_train.data.readers import PREFIXES, holds_tars
from augury_train.data.root import refuse_disk_root
from augury_train.data.source import Source
from augury_train.data.splits import Split
from augury_train.data.synthetic import PREFIX as SYNTHETIC
from augury_train.training.watch import Reporter

KEPT = 0.95
"""Share of the own images that a threshold lets pass, for the false positive rate."""


@dataclass(frozen=True)
class Outliers:
    """How well the largest softmax tells a network's own images from others (Hendrycks and Gimpel 2017,
    arXiv 1610.02136).

    Attributes:
        name: of the other data.
        images: of them that were shown.
        auroc: chance in percent that an image of its own gets a larger one than one of the others, equal ones counted
            half; 50 is no better than guessing.
        fpr95: share in percent of the others that pass the threshold which 95 % of its own pass.
        confidence: mean largest softmax on the others, in [0, 1].
    """

    name: str
    images: int
    auroc: float
    fpr95: float
    confidence: float


def separate(own: Tensor, others: Tensor, name: str) -> Outliers:
    """Compare confidences.

    Args:
        own, others: N and M float64, the largest softmax of each image.
        name: of the other data.
    """
    from torchmetrics.functional.classification import binary_auroc

    scores = torch.cat([own, others])
    # By rank, and counted from 0 to 1: what is left of float32's precision next to 1 would make ties of near ones.
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    target = torch.cat([torch.ones(len(own), dtype=torch.int64), torch.zeros(len(others), dtype=torch.int64)])
    auroc = binary_auroc(ranks / max(float(ranks.max()), 1.0), target)
    # The smallest own score that still passes when 95 % of the own ones do.
    threshold = own.sort(descending=True).values[math.ceil(KEPT * len(own)) - 1]
    return Outliers(
        name=name,
        images=len(others),
        auroc=100 * float(auroc),
        fpr95=100 * float((others >= threshold).double().mean()),
        confidence=float(others.mean()),
    )


@torch.no_grad()
def shown(subject: Subject, images: Split, name: str, reporter: Reporter) -> tuple[Tensor, list[str]]:
    """What a network makes of other data, in so far as they can be read.

    Args:
        subject: the network.
        images: M of the other data.
        name: of the other data.
        reporter: told how far it is.

    Returns:
        the largest softmax of each image that can be read, M float64 on the host, and the names of those that cannot.

    Raises:
        UsageError: none of them can be read.
    """
    batches = torch.arange(len(images)).split(subject.batch_size)
    scores, unread = [], []
    reporter.start(name, len(batches), 0)
    try:
        for rows in batches:
            pixels, bad = _readable(subject, images.take(rows))
            unread += bad
            if len(pixels):
                scores.append(confidence_of(subject.logits(pixels).cpu()))
            reporter.step(len(rows))
    finally:
        reporter.stop()
    if not scores:
        raise UsageError(f"--ood {name}: none of {len(images)} images can be read, {unread[0]} say. Name other data.")
    return torch.cat(scores), unread


def _readable(subject: Subject, images: Split) -> tuple[Tensor, list[str]]:
    """Pixels of the images that can be read, and the names of the others."""
    try:
        return subject.show(images), []
    except UsageError:
        bad = [place for place, row in enumerate(images.rows.tolist()) if not _can_read(images.source, row)]
        if not bad:
            raise
    good = sorted({*range(len(images))} - {*bad})
    names = [images.source.name(int(images.rows[place])) for place in bad]
    return subject.show(images.take(torch.tensor(good, dtype=torch.int64))), names


def _can_read(source: Source, row: int) -> bool:
    try:
        source.read(row)
    except UsageError:
        return False
    return True


def open_outliers(name: str, own: DataConfig, channels: int) -> Split:
    """Other data, in the channels that a network takes.

    Args:
        name: a data set by name, of which the test images are taken where there are such, or any folder: all images in
            it and below it, in the order of their paths.
        own: the network's data.
        channels: 1 or 3.

    Raises:
        UsageError: no such data, no image in it, or the network's own.
    """
    known = name.partition(":")[0] in NAMES or name.startswith(SYNTHETIC) or name.lower().startswith(PREFIXES)
    folder = Path() if known else given_path(name, "--ood")
    if not known and folder.is_dir() and not holds_tars(folder):
        refuse_disk_root(folder, f"--ood {name}")
        name = str(folder.resolve())
        source: Source = _all_images(folder.resolve())
    else:
        found = open_dataset(DataConfig(dataset=name)).splits
        source = next(found[key] for key in ("test", "val", "all", "train") if key in found)
    if name == own.dataset:
        raise UsageError(f"--ood {name}: these are the run's own images. Name other data.")
    return Split(_InChannels(source, channels), torch.arange(len(source)))


def _all_images(folder: Path) -> FolderSource:
    paths = [
        os.path.relpath(os.path.join(place, file), folder)
        for place, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith(tuple(SUFFIXES)) and not file.startswith(".")
    ]
    if not paths:
        raise UsageError(f"--ood {folder}: no image in this folder or below it. Name another.")
    return FolderSource(str(folder), Names(sorted(paths)), np.zeros(len(paths), dtype=np.int64), None, "")


class _InChannels:
    """A source whose images are turned grey, or into colours, as a network takes them."""

    def __init__(self, source: Source, channels: int) -> None:
        self._source, self.channels = source, channels
        self.labels, self.size = source.labels, source.size

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> Image.Image:
        """Image `index`, mode L or RGB."""
        image = self._source.read(index)
        return to_rgb(image) if self.channels == 3 else image.convert("L")

    def name(self, index: int) -> str:
        """What the other data call it."""
        return self._source.name(index)
