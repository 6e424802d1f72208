"""What a trained network says of image files."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from augury.errors import UsageError
from augury_train.data.decoding import UnreadableError, decode_rgb
from augury_train.data.folder import images_below
from augury_train.inference.classifier import Classifier
from augury_train.machine import cores

BATCH = 64
"""Images in a forward pass, unless told otherwise."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        file: its path as it was given, or as it was found below a folder that was given.
        classes: names of the likeliest classes, the likeliest first; empty for an image that cannot be read.
        probabilities: of these.
        error: why it cannot be read; None for one that can.
    """

    file: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def find_images(places: Iterable[Path | str]) -> list[Path]:
    """Image files in the order in which they are given; those below a folder in the order of their names.

    Files are taken whatever they are called; of a folder's those that are called as images are, at any depth, hidden
    ones left out.

    Raises:
        UsageError: a folder without images, or one that cannot be listed.
    """
    found: list[Path] = []
    for place in map(Path, places):
        # A name that is too long, or in a folder that may not be looked into, is marked when it is read.
        if not os.path.isdir(place):
            found.append(place)
            continue
        try:
            below = images_below(place)
        except OSError as error:
            told = error.filename or place
            raise UsageError(f"{told}: cannot be listed ({error.strerror}). Check its permissions.") from None
        if not below:
            raise UsageError(f"{place}: no images in it. Name files, or another folder.")
        found += below
    return found


def predict(
    classifier: Classifier, images: Iterable[Path | str], *, top: int = 5, batch_size: int = BATCH
) -> Iterator[Prediction]:
    """Ask a network for the classes of images, which are decoded while it computes.

    Args:
        classifier: from `augury.load_classifier`.
        images: files and folders; see `find_images`. All are listed before the first is read.
        top: how many classes to tell, at most.
        batch_size: most images in a forward pass.

    Yields:
        one for each image, in order; those that cannot be read among them, with the reason.

    Raises:
        UsageError: a folder without images, numbers below 1, or weights that give no numbers.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}.")
    return _predictions(classifier, find_images(images), min(top, len(classifier.classes)), batch_size)


def _predictions(classifier: Classifier, files: Sequence[Path], top: int, batch_size: int) -> Iterator[Prediction]:
    with ThreadPoolExecutor(cores()) as pool:
        read = _ahead(pool, classifier, files, batch_size)
        for start, chunk in zip(range(0, len(files), batch_size), read, strict=True):
            shown = [image for image in chunk if isinstance(image, Tensor)]
            said = iter(_likeliest(classifier, torch.stack(shown), top) if shown else ())
            for file, image in zip(files[start : start + batch_size], chunk, strict=True):
                if isinstance(image, Tensor):
                    yield Prediction(os.fspath(file), *next(said))
                else:
                    yield Prediction(os.fspath(file), error=image)


def _ahead(
    pool: ThreadPoolExecutor, classifier: Classifier, files: Sequence[Path], batch_size: int
) -> Iterator[list[Tensor | str]]:
    """Batches of images, or of reasons why there is none; the next one is read while its reader has this one."""

    def read(file: Path) -> Tensor | str:
        try:
            return classifier.prepare(decode_rgb(file))
        except UnreadableError as error:
            return str(error)

    waiting: list[Future[Tensor | str]] = []
    for start in itertools.count(0, batch_size):
        following = [pool.submit(read, file) for file in files[start : start + batch_size]]
        if waiting:
            yield [future.result() for future in waiting]
        if not following:
            return
        waiting = following


def _likeliest(classifier: Classifier, images: Tensor, top: int) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Names and probabilities of the `top` likeliest classes of N x channels x side x side uint8."""
    found = classifier.logits(images).softmax(1).topk(top)
    for places, values in zip(found.indices.tolist(), found.values.tolist(), strict=True):
        if not all(map(math.isfinite, values)):
            raise UsageError(
                f"{classifier.path}: its network gives no numbers. Its weights are damaged; export them anew."
            )
        yield tuple(classifier.classes[place] for place in places), tuple(values)
