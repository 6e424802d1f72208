"""One process at a time is at work in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from augury.errors import UsageError
from augury.files import writing

LOCK = ".lock"

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


def lock(folder: Path, busy: str) -> IO[str]:
    """Lock a folder; the lock ends when the file that is returned is closed, or with this process, however that
    ends. Processes forked from it do not hold it.

    Raises:
        UsageError: `busy`, where another process has it.
    """
    path = folder / LOCK
    with writing(path):
        file = path.open("w", encoding="utf-8")
    if fcntl is None:
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.close()
        raise UsageError(busy) from None
    except OSError:
        # A file system without locks.
        pass
    return file
