"""What the name of a data set stands for."""

from __future__ import annotations

from pathlib import Path

from augury.errors import UsageError, unknown
from augury.outside import given_path
from augury_train.config import DataConfig
from augury_train.data.folder import open_folder
from augury_train.data.named import NAMES, open_named
from augury_train.data.readers import PREFIXES, holds_tars, open_reader
from augury_train.data.root import VARIABLE, data_root, refuse_disk_root
from augury_train.data.source import Collection
from augury_train.data.synthetic import PREFIX as SYNTHETIC
from augury_train.data.synthetic import open_synthetic

BY_HAND = ("imagenet",)
"""Folders of images by the names that recipes give them. Nobody can download them."""


def open_dataset(config: DataConfig) -> Collection:
    """Find the images that `config.dataset` names. A name that augury knows means the same in every folder; a folder
    of that name is written `./digits`.

    Args:
        config: the run's data section.

    Returns:
        the images, not split yet where the data set brings no split of its own.

    Raises:
        UsageError: an unknown name, or images that are missing or cannot be read.
    """
    name = config.dataset
    if name.startswith(SYNTHETIC):
        return open_synthetic(name)
    if name.partition(":")[0] in NAMES:
        return open_named(name)
    if name.lower().startswith(PREFIXES):
        return open_reader(name, skip_bad=config.skip_bad_images)
    path = _existing(name)
    if path.is_file() or holds_tars(path):
        return open_reader(str(path), skip_bad=config.skip_bad_images)
    refuse_disk_root(path, f"data set `{name}`")
    return open_folder(path, skip_bad=config.skip_bad_images)


def lasting_name(name: str) -> str:
    """The same data set, named so that it is found from any folder."""
    known, colon, folder = name.partition(":")
    if known in NAMES and folder:
        return f"{known}:{given_path(folder, known).resolve()}"
    if known in NAMES or name.startswith(SYNTHETIC) or name.lower().startswith(PREFIXES):
        return name
    return str(_existing(name).resolve())


def _existing(name: str) -> Path:
    """The path that `name` is, from here or from the data root."""
    for place in (name, data_root() / name) if name else ():
        if (path := given_path(place, "data set")).exists():
            return path
    if name in BY_HAND:
        raise UsageError(
            f"data set `{name}` is not here and cannot be downloaded: {data_root() / name} must hold train/ and val/, "
            f"each with a folder of images for each class. Put it there ({VARIABLE} sets another data root), or give "
            "the folder: --dataset DIR."
        )
    raise UsageError(
        unknown("data set", name, [*NAMES, SYNTHETIC, *PREFIXES])
        + f" Or give a folder with one subfolder of images for each class, from here or below {data_root()}."
    )
