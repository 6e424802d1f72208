"""A package's folder: written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from augury.errors import AuguryError


def faults(folder: Path) -> list[str]:
    """Why a new package cannot go into a folder, a line; nothing when it can.

    Raises:
        AuguryError: it cannot be read.
    """
    try:
        held = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except NotADirectoryError:
        return [f"{folder} is no folder. Name another with --path."]
    except OSError as error:
        raise AuguryError(f"{folder} cannot be read: {error.strerror}. Name another with --path.") from error
    some = ", ".join(held[:3]) + (f" and {len(held) - 3} more" if len(held) > 3 else "")
    return [f"{folder} holds files already ({some}). Name another folder with --path."] if held else []


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files so that the folder is there with all of them, or as it was before.

    Args:
        folder: empty, or not there.
        files: texts by their paths in it.

    Raises:
        AuguryError: it cannot be written.
    """
    try:
        with _staged(folder.resolve()) as staging:
            for name, text in files.items():
                file = staging / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AuguryError(f"{folder} cannot be written: {error.strerror}. Name another with --path.") from error


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """A folder that becomes `folder` when the block ends well, and of which nothing is left when it does not."""
    present = folder.exists()
    # In one that is present, so that a shell that stands in it still stands in the package.
    home = folder if present else folder.parent
    made = [parent for parent in (home, *home.parents) if not parent.exists()]
    staging = home / f".{folder.name}.{os.getpid()}"
    try:
        staging.mkdir(parents=True)
        yield staging
        if present:
            _move_up(staging)
        else:
            staging.rename(folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # it was never made, or is used by now
                parent.rmdir()
        raise


def _move_up(staging: Path) -> None:
    moved: list[Path] = []
    try:
        for entry in sorted(staging.iterdir()):
            moved.append(entry.rename(staging.parent / entry.name))
        staging.rmdir()
    except BaseException:
        for entry in moved:
            entry.rename(staging / entry.name)
        raise
