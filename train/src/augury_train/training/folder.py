"""A run's folder: made, held by one process at a time, and told from what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from augury.errors import RunError, UsageError
from augury_train.data.subset import FILE as SUBSET
from augury_train.files import remove, write_text
from augury_train.training.environment import ENVIRONMENT
from augury_train.training.facts import DATA
from augury_train.training.lock import LOCK, lock

CONFIG = "config.json"
EARLY = {DATA, SUBSET, ENVIRONMENT, CONFIG, LOCK}
"""What a run writes before it is one, the settings last."""


def refuse_existing(folder: Path) -> None:
    """Raises: UsageError where a folder holds something; what a run left that was killed before it began is nothing."""
    if not folder.exists():
        return
    if (folder / CONFIG).exists():
        raise UsageError(f"{folder} exists. Continue it with `augury resume {folder}`, or choose another --output.")
    if not folder.is_dir() or not {path.name.removesuffix(".partial") for path in folder.iterdir()} <= EARLY:
        raise UsageError(f"{folder} exists and holds no run. Choose another --output.")


@contextmanager
def make(folder: Path) -> Iterator[None]:
    """Make a run's folder, and hold it as `hold` does.

    Raises:
        UsageError: it exists, or cannot be made.
    """
    refuse_existing(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}). Choose another --output.") from None
    with hold(folder):
        for path in folder.iterdir():
            if path.name != LOCK:
                remove(path)
        yield


def hold(folder: Path) -> AbstractContextManager[None]:
    """Keep others from training in a run's folder while the block runs.

    Raises:
        UsageError: another process is at work.
    """
    return lock(folder, f"{folder}: another process is training in it. Wait until it has ended, or end it first.")


def refuse_lost(folder: Path) -> None:
    """Refuse to go on in a run's folder that somebody removed or replaced after the run had begun.

    Raises:
        RunError: the run's settings are no longer there; a folder made anew would hold half of a run.
    """
    if (folder / CONFIG).is_file():
        return
    if not folder.exists():
        what = "the run's folder was removed"
    elif not folder.is_dir():
        what = "the run's folder was replaced by a file"
    else:
        what = f"the run's folder was replaced, or emptied ({CONFIG} is no longer there)"
    raise RunError(f"{folder}: {what} while the run trained, so it ends here. Bring the folder back, or start anew.")


def write_json(path: Path, content: Any) -> None:
    """Write what people may want to read, too."""
    write_text(path, json.dumps(content, indent=2) + "\n")
