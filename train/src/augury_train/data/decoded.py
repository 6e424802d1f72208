"""Images decoded in an earlier start, kept in the data root: 50,000 small JPEG files take 10 s to decode and none to
map."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from augury_train.data.root import data_root

WORTH = 5_000
"""Images from which on keeping them saves more than it costs."""
LIMIT = 4 * 2**30
"""Bytes that all of them may take; the longest unused go first. A data set may take a quarter."""

Pixels = NDArray[np.uint8]


def recall(stamp: str, shape: tuple[int, ...], how: object, make: Callable[[Pixels], Any]) -> Pixels:
    """The decoded images that `stamp` stands for: mapped from the file of an earlier start, else made and kept.

    A file that is damaged, or cannot be written, makes a start slower, nothing else.

    Args:
        stamp: stands for the encoded images.
        shape: N x ch x H x W.
        how: what else the pixels depend on.
        make: fills an array of that shape.

    Returns:
        N x ch x H x W uint8, not to be written to.
    """
    key = hashlib.sha256(repr((stamp, shape, how, PIL.__version__)).encode()).hexdigest()[:32]
    path = data_root() / "decoded" / f"{key}.npy"
    found = _kept(path)
    if found is not None and found.shape == shape and found.dtype == np.uint8:
        return found
    pixels = np.empty(shape, dtype=np.uint8)
    make(pixels)
    _keep(path, pixels)
    return pixels


def worth_keeping(shape: tuple[int, ...]) -> bool:
    """Whether images of that shape, N first, are many enough and not too large."""
    return shape[0] >= WORTH and int(np.prod(shape)) <= LIMIT // 4


def _kept(path: Path) -> Any:
    """The array in a file, None where there is none that can be read."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        # Used today: the longest unused go first.
        os.utime(path)
        return found
    except (OSError, ValueError, EOFError):
        return None


def _keep(path: Path, pixels: Pixels) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A cache is not what a disk should be filled with.
        if shutil.disk_usage(path.parent).free < 4 * pixels.nbytes:
            return
        _make_room(path.parent, LIMIT - pixels.nbytes)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                np.save(file, pixels, allow_pickle=False)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError:
        return


def _make_room(folder: Path, limit: int) -> None:
    """Remove the longest unused files until the rest take `limit` bytes at most."""
    kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in kept:
        total += path.stat().st_size
        if total > limit:
            path.unlink(missing_ok=True)
