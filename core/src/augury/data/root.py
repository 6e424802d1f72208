"""Where data sets that are downloaded, or put there by hand, are kept."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "AUGURY_DATA"


def data_root() -> Path:
    """The folder that AUGURY_DATA names, else `data` in the platform's cache folder for augury. It need not exist."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("augury", appauthor=False) / "data"
