"""Checkpoints: everything a run needs to go on as if nothing had happened."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from augury.errors import UsageError
from augury.files import replacing

FOLDER = "checkpoints"
KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, lists, dicts) for `step`; the file is whole or absent, and the last two
    are kept."""
    (folder / FOLDER).mkdir(exist_ok=True)
    path = folder / FOLDER / f"step-{step:09d}.pt"
    with replacing(path) as partial, partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    for old in checkpoints(folder)[:-KEPT]:
        old.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((folder / FOLDER).glob("step-*.pt"))


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint, None if there is none yet. Executes no code of the file.

    Raises:
        UsageError: it cannot be read.
    """
    found = checkpoints(folder)
    if not found:
        return None
    try:
        return torch.load(found[-1], map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, ImportError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{found[-1]}: damaged ({type(error).__name__}). Delete it to resume from the checkpoint before."
        ) from None


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a network's weights as safetensors, which `timm.create_model(..., checkpoint_path=path)` loads."""
    with replacing(path) as partial:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, partial, metadata)
