"""Where data sets that are downloaded, or put there by hand, are kept."""

from __future__ import annotations

import os
from pathlib import Path

from augury.errors import UsageError
from augury.outside import given_path

VARIABLE = "AUGURY_DATA"


def data_root() -> Path:
    """The folder that AUGURY_DATA names, else `data` in the platform's cache folder for augury. It need not exist."""
    if chosen := os.environ.get(VARIABLE):
        return given_path(chosen, VARIABLE)
    import platformdirs

    return platformdirs.user_cache_path("augury", appauthor=False) / "data"


def refuse_disk_root(path: Path, name: str) -> None:
    """Refuse the root of a file system as a folder of images: the whole disk would be looked through.

    Args:
        path: the folder.
        name: what messages call it.

    Raises:
        UsageError: it is one.
    """
    if os.path.realpath(path) == os.path.realpath(Path(path).absolute().anchor):
        raise UsageError(f"{name}: the whole disk would be looked through. Give the folder of the images.")
