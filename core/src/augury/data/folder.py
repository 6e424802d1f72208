"""Image folders: one subfolder a class, alone or below train/, val/ and test/."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from augury.errors import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
SPLITS = ("train", "val", "test")

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_image_folder(root: Path, size: int | None, model_size: int) -> tuple[dict[str, Arrays], list[str]]:
    """Read all images of a folder as RGB.

    Args:
        root: holds `<class>/*.jpg`, or `train/`, and perhaps `val/` and `test/`, of such.
        size: side in pixels; None: the images' own size if they all have one, else `model_size`.
        model_size: see `size`.

    Returns:
        images N x 3 x H x W and labels N by split name (`all` for a folder without splits), and the class names.

    Raises:
        UsageError: no classes, an empty class, a class that training does not have, an image that cannot be read.
    """
    roots = (
        {name: root / name for name in SPLITS if (root / name).is_dir()} if (root / "train").is_dir() else {"all": root}
    )
    classes = _subfolders(roots.get("train", root))
    if len(classes) < 2:
        raise UsageError(
            f"{root}: found {len(classes)} class folder(s), at least 2 are needed. "
            "Put the images of each class in a folder of its own."
        )
    files = {name: _files(split, classes) for name, split in roots.items()}
    if size is None:
        sizes = _distinct_sizes(path for listed in files.values() for path, _ in listed)
        size = None if len(sizes) == 1 else model_size
    return {name: _read(listed, size) for name, listed in files.items()}, classes


def _subfolders(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _files(root: Path, classes: list[str]) -> list[tuple[Path, int]]:
    strange = sorted(set(_subfolders(root)) - set(classes))
    if strange:
        raise UsageError(
            f"{root / strange[0]}: a class that training does not have. Classes: {', '.join(classes)}. "
            "Rename or remove it."
        )
    found = []
    for label, name in enumerate(classes):
        paths = (
            sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in SUFFIXES)
            if (root / name).is_dir()
            else []
        )
        if not paths:
            raise UsageError(
                f"{root / name}: no images of this class. "
                f"Add some ({', '.join(sorted(SUFFIXES))}) or remove the folder."
            )
        found += [(path, label) for path in paths]
    return found


def _distinct_sizes(paths: Iterable[Path]) -> set[tuple[int, int]]:
    """At most two of the sizes there are: one means that all agree."""
    sizes: set[tuple[int, int]] = set()
    for path in paths:
        with _opened(path) as image:
            sizes.add(image.size)
        if len(sizes) > 1:
            break
    return sizes


def _read(files: list[tuple[Path, int]], size: int | None) -> Arrays:
    def decode(item: tuple[Path, int]) -> NDArray[np.uint8]:
        with _opened(item[0]) as image:
            try:
                upright = ImageOps.exif_transpose(image).convert("RGB")
            except (OSError, ValueError, SyntaxError) as error:
                raise _unreadable(item[0], error) from None
        if size is not None:
            upright = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
        return np.asarray(upright).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(decode, files)))
    return images, np.array([label for _, label in files], dtype=np.int64)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UsageError:
    return UsageError(f"{path}: not a readable image ({error}). Replace or remove it.")
