"""One process at a time is at work in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from augury.errors import UsageError
from augury_train.files import writing

LOCK = ".lock"

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


_HERE: set[Path] = set()
"""What this process has locked: the system's locks do not part its threads."""


@contextmanager
def lock(folder: Path, busy: str) -> Iterator[None]:
    """Lock a folder while the block runs; the lock ends with this process, too, however that ends. Processes forked
    from it do not hold it.

    Raises:
        UsageError: `busy`, where another process has it, or another block.
    """
    path = folder / LOCK
    place = path.resolve()
    if place in _HERE:
        raise UsageError(busy)
    with writing(path):
        file = path.open("w", encoding="utf-8")
    with file:
        if not _free(file):
            raise UsageError(busy)
        _HERE.add(place)
        try:
            yield
        finally:
            _HERE.discard(place)


def _free(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        # A file system without locks.
        return True
    return True
