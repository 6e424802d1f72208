"""The classic data sets that augury knows by name."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from augury.errors import UsageError
from augury.outside import given_path, read_bytes
from augury_train.data.root import VARIABLE, data_root
from augury_train.data.source import ArraySource, Collection, Source

IDX_NAMES = {"train": "train", "test": "t10k"}
"""What the IDX files of a split begin with."""
IDX_PARTS = {"images": 3, "labels": 1}
"""Kinds of IDX files and how many dimensions they have."""
LARGEST_IDX = 2**28
"""Bytes of an IDX file, unpacked."""
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

Loaded = dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Images N x ch x H x W and labels N by split."""


def open_named(name: str) -> Collection:
    """Open a classic data set, downloading it into the data root where that is needed and possible.

    Args:
        name: one of `NAMES`; `fashion_mnist:FOLDER` names the folder of its IDX files.

    Raises:
        UsageError: files that are missing and cannot be downloaded, or are damaged.
    """
    known, colon, folder = name.partition(":")
    if colon and known != "fashion_mnist":
        raise UsageError(f"{name}: only fashion_mnist takes a folder. Write `{known}` and set {VARIABLE}.")
    if known == "fashion_mnist":
        return _fashion_mnist(given_path(folder, known) if folder else None)
    return NAMES[known]()


def _digits() -> Collection:
    """The 1,797 images of 8 x 8 that come with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Grey levels are 0 to 16 in the source.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Collection(
        {"all": ArraySource(images, digits.target.astype(np.int64), "digit")},
        [str(digit) for digit in range(10)],
        transforms=["crop:1"],
        # Over all of them.
        mean=[0.3053],
        std=[0.3759],
    )


def _fashion_mnist(given: Path | None = None) -> Collection:
    """60,000 + 10,000 images of 28 x 28; arXiv 1708.07747."""
    from torchvision.datasets import FashionMNIST

    folder = _fashion_mnist_folder(given)
    return _collection(
        "fashion_mnist",
        {split: _read_idx(folder, split) for split in IDX_NAMES},
        [str(name) for name in FashionMNIST.classes],
        transforms=["crop:2", "flip"],
        mean=[0.2860],
        std=[0.3530],
    )


def _fashion_mnist_folder(given: Path | None) -> Path:
    """The first folder that has the IDX files, after a download where none has."""
    from torchvision.datasets import FashionMNIST

    if given is not None:
        if _idx_file(given, "train", "images") is None:
            raise UsageError(
                f"{given}: no Fashion-MNIST files here, {_idx_example()} was looked for. Check the folder."
            )
        return given
    downloaded = data_root() / "FashionMNIST" / "raw"
    places = [data_root() / "fashion-mnist", downloaded, DEBIAN_FASHION_MNIST]
    for place in places:
        if _idx_file(place, "train", "images") is not None:
            return place
    by_hand = f"the four IDX files ({_idx_example()}, ...) into {places[0]}, or name their folder: fashion_mnist:FOLDER"
    _download("fashion_mnist", partial(FashionMNIST, str(data_root()), download=True), by_hand, places)
    return downloaded


def _idx_example() -> str:
    return "train-images-idx3-ubyte[.gz]"


def _idx_file(folder: Path, split: str, part: str) -> Path | None:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{IDX_NAMES[split]}-{part}{separator}idx{IDX_PARTS[part]}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _read_idx(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    arrays = []
    for part, dimensions in IDX_PARTS.items():
        path = _idx_file(folder, split, part)
        if path is None:
            name = f"{IDX_NAMES[split]}-{part}-idx{dimensions}-ubyte"
            raise UsageError(f"{folder}: {name}[.gz] is missing beside the other IDX files. Put it there.")
        arrays.append(read_idx(path, dimensions))
    images, labels = arrays
    if len(images) != len(labels):
        raise UsageError(f"{folder}: {len(images)} {split} images but {len(labels)} labels. Fetch the files again.")
    if len(labels) == 0 or labels.max() > 9:
        raise UsageError(f"{folder}: the {split} labels are not 0 to 9. These are not the files of Fashion-MNIST.")
    return images[:, None], labels.astype(np.int64)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, compressed by gzip or not.

    The format: two zero bytes, 0x08 for unsigned bytes, the number of dimensions; each dimension as a big-endian
    32-bit integer; the bytes, the last dimension running fastest.

    Raises:
        UsageError: another kind of file, or another length than its header says.
    """
    try:
        content = read_bytes(path, LARGEST_IDX)
        if content[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(content)) as file:
                # A few bytes can stand for any number of them.
                content = file.read(LARGEST_IDX + 1)
            if len(content) > LARGEST_IDX:
                raise ValueError(f"it is larger than {LARGEST_IDX >> 20} MiB")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Fetch it again.") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, 8, dimensions)):
        raise UsageError(f"{path}: not an IDX file of bytes in {dimensions} dimension(s). Fetch it again.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise UsageError(
            f"{path}: holds {len(content) - start} bytes where its header says {'x'.join(map(str, shape))}. "
            "Fetch it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _cifar10() -> Collection:
    """50,000 + 10,000 images of 32 x 32, 10 classes."""
    from torchvision.datasets import CIFAR10

    # torchvision's figures are the mean of the images' own deviations; these are over all pixels.
    return _cifar("cifar10", CIFAR10, [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


def _cifar100() -> Collection:
    """50,000 + 10,000 images of 32 x 32, 100 classes."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])


def _cifar(name: str, kind: Any, mean: list[float], std: list[float]) -> Collection:
    root = data_root()
    by_hand = f"{kind.base_folder}/ (from {kind.filename}) into {root}"
    loaded: Loaded = {}
    classes: list[str] = []
    for split in ("train", "test"):
        read = _torchvision(name, partial(kind, str(root), split == "train"), by_hand, root)
        images = np.ascontiguousarray(read.data.transpose(0, 3, 1, 2))
        loaded[split] = images, np.array(read.targets, dtype=np.int64)
        classes = [str(word) for word in read.classes]
    return _collection(name, loaded, classes, transforms=["crop:4", "flip"], mean=mean, std=std)


def _svhn() -> Collection:
    """73,257 + 26,032 images of 32 x 32, the digits of house numbers."""
    from torchvision.datasets import SVHN

    folder = data_root() / "svhn"
    by_hand = f"train_32x32.mat and test_32x32.mat into {folder}"
    loaded: Loaded = {}
    for split in ("train", "test"):
        read = _torchvision("svhn", partial(SVHN, str(folder), split), by_hand, folder)
        loaded[split] = np.ascontiguousarray(read.data), read.labels.astype(np.int64)
    return _collection(
        "svhn",
        loaded,
        [str(digit) for digit in range(10)],
        transforms=["crop:4"],
        mean=[0.4377, 0.4438, 0.4728],
        std=[0.1980, 0.2010, 0.1970],
    )


def _torchvision(name: str, make: Callable[..., Any], by_hand: str, place: Path) -> Any:
    """torchvision's data set from the files that are there, else from a download."""
    try:
        return make(download=False)
    except RuntimeError:
        # What it raises for files that are missing, or are not those that it knows by their checksums.
        return _download(name, partial(make, download=True), by_hand, [place])


def _download(name: str, fetch: Callable[[], Any], by_hand: str, places: list[Path]) -> Any:
    try:
        # It prints its progress, and standard output is the program's own.
        with contextlib.redirect_stdout(sys.stderr):
            return fetch()
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{name}: no intact files in {' or '.join(map(str, places))}, and the download failed ({reason}). "
            f"Put {by_hand}; {VARIABLE} sets another data root."
        ) from None


def _collection(
    name: str, loaded: Loaded, classes: list[str], *, transforms: list[str], mean: list[float], std: list[float]
) -> Collection:
    splits: dict[str, Source] = {
        split: ArraySource(images, labels, f"{name} {split} image") for split, (images, labels) in loaded.items()
    }
    return Collection(splits, classes, transforms=transforms, mean=mean, std=std)


NAMES: dict[str, Callable[[], Collection]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
}
"""The data sets, by name."""
