"""Checkpoints: everything a run needs to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from augury.errors import AuguryError, UsageError
from augury_train.backbones.weights import load_weights
from augury_train.files import folder_inside, folder_to_disk, replacing, writing

FOLDER = "checkpoints"
KEPT = 2
_NAME = re.compile(r"step-(\d{9,})-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` for `step`.

    The file is whole or absent, its name holds a digest of its content. Of the others in the folder, the newest of an
    earlier step is kept: what is later was damaged, or belongs to steps that are done again.

    Args:
        folder: the run's.
        step: optimiser steps that are done.
        state: tensors, numbers, text, lists and dicts.

    Raises:
        AuguryError: `state` holds what could not be loaded again without executing code.
        WriteError: the disk is full, say.
    """
    if (odd := _odd(state)) and not _can_be_read(state):
        raise AuguryError(
            f"checkpoint: {odd} cannot be read back without executing code, so this run could not go on. State must be "
            "tensors, numbers, text, lists and dicts; get_extra_state of a method may convert it."
        )
    kept = folder_inside(folder, FOLDER)
    unnamed = kept / f"step-{step:09d}.pt"
    with replacing(unnamed) as partial, partial.open("wb") as file:
        content = _Digested(file)
        torch.save(state, cast(BinaryIO, content))
    # The digest is known when all is written. Until it has its name, the file does not count.
    path = unnamed.with_name(f"step-{step:09d}-{content.digest}.pt")
    with writing(path):
        os.replace(unnamed, path)
    folder_to_disk(kept)
    earlier = [old for old in checkpoints(folder) if _step(old) < step]
    for old in set(kept.glob("step-*")) - {path, *earlier[1 - KEPT :]}:
        old.unlink(missing_ok=True)


def _odd(state: Any, path: str = "") -> str:
    """The first place in nested values that is of no plain kind; "" where there is none."""
    if isinstance(state, dict):
        inside = [(f"{path}.{key}" if path else str(key), value) for key, value in state.items()]
    elif isinstance(state, list | tuple):
        inside = [(f"{path}[{number}]", value) for number, value in enumerate(state)]
    else:
        plain = isinstance(state, Tensor) or type(state) in (bool, int, float, str, type(None))
        return "" if plain else f"`{path}`, a {type(state).__module__}.{type(state).__qualname__},"
    return next(filter(None, (_odd(value, place) for place, value in inside)), "")


def _can_be_read(state: dict[str, Any]) -> bool:
    file = io.BytesIO()
    try:
        torch.save(state, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in (folder / FOLDER).glob("step-*.pt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (_step(path), path.stat().st_mtime_ns))


def load_checkpoint(folder: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any] | None:
    """The newest checkpoint that is whole, None if there is none yet. Executes no code of the file.

    Args:
        folder: the run's.
        tell: is told of damaged ones, which are passed over.

    Raises:
        UsageError: there are some, and all are damaged.
    """
    damaged: list[str] = []
    state = None
    for path in reversed(checkpoints(folder)):
        try:
            if _digest(path) != cast(re.Match[str], _NAME.fullmatch(path.name))[2]:
                raise ValueError("its content is not what was written")
            with warnings.catch_warnings():
                # Of pickles that torch did not write.
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
            if isinstance(state, dict):
                break
            raise ValueError("it holds no state")
        except Exception as error:
            # A file from elsewhere can fail in any way.
            state = None
            damaged.append(f"{path}: damaged ({_reason(error)})")
    if damaged and state is None:
        raise UsageError(
            "\n".join(
                [
                    *damaged,
                    f"{folder}: no checkpoint can be read. Start the run anew with another --output, or bring a copy "
                    "of one back.",
                ]
            )
        )
    for line in damaged:
        tell(f"{line}. The one before is used, and what came after is done again.")
    return state


def weights_epoch(path: Path) -> int | None:
    """The epoch after which a run wrote these weights; None where the file is missing, damaged or does not say."""
    try:
        return int(load_weights(path)[1]["epoch"])
    except (OSError, LookupError, ValueError):
        return None


def _step(path: Path) -> int:
    return int(cast(re.Match[str], _NAME.fullmatch(path.name))[1])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash() -> Any:
    return hashlib.blake2b(digest_size=8)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()[:12]) or type(error).__name__


class _Digested:
    """A file to write to that knows the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._hash = file, _hash()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def write(self, content: Any) -> int:
        self._hash.update(content)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()
