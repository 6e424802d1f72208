"""Files of weights: where they are, how they are written and read, what one that augury wrote says of its network, and
whether it fits another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, Json
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from augury.errors import UsageError
from augury.outside import given_path
from augury_train.config import Count, Positive
from augury_train.files import replacing
from augury_train.formats import check_format

BEST = "best.safetensors"
"""A run's best weights, in its folder."""
EXPORTED = "model.safetensors"
"""The weights in an exported folder."""


class Description(BaseModel):
    """What augury writes beside the weights of a network, in the file's metadata; all None for any other file.

    Attributes:
        model: the network's name in timm's registry.
        model_args: further arguments of `timm.create_model`.
        classes: names by label.
        input_size: (channels, height, width) of the images that it was trained on.
        test_input_size: of those that it is evaluated on.
        test_kept_size: side of the centre square that an image is resized to, of which `test_input_size` is the centre.
        crop_pct: what part of that square training images keep, as timm's data config has it.
        interpolation: how images are resized.
        mean, std: of each channel on the scale of [0, 1].
        weights: whether they are a moving average of those that were trained.
        augury_format: the format of the file; files of format 1 say none.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    model: str | None = None
    model_args: Json[dict[str, Any]] | None = None
    classes: Json[list[str]] | None = None
    input_size: Json[tuple[Count, Count, Count]] | None = None
    test_input_size: Json[tuple[Count, Count, Count]] | None = None
    test_kept_size: Json[Count] | None = None
    crop_pct: Json[Annotated[float, Field(gt=0, le=1)]] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    mean: Json[list[float]] | None = None
    std: Json[list[Positive]] | None = None
    weights: Literal["raw", "ema"] | None = None
    augury_format: Json[int] | None = None


def in_folder(folder: Path, name: str = BEST) -> Path | None:
    """The file of weights of a run's folder, which has one of that name, or of an exported one; None where there is
    neither."""
    return next((folder / known for known in (name, EXPORTED) if (folder / known).is_file()), None)


def locate(place: str, subject: str, label: str = "model.init_from") -> Path:
    """The file of weights that a place stands for.

    Args:
        place: a run folder, whose best weights are meant, an exported folder, or a file.
        subject: what an error begins with.
        label: what a path that cannot be used is called.

    Raises:
        UsageError: the path cannot be used, or the folder has none. A file that is not there is found when it is
            read.
    """
    path = given_path(place, label)
    if path.is_dir():
        found = in_folder(path)
        if found is None:
            raise UsageError(
                f"{subject} has no {BEST}, which a run writes at the end of an epoch. Give another run, or a file."
            )
        return found
    return path


def describe(path: Path) -> Description:
    """Return what a file says of its network: nothing where it is no safetensors, or says what cannot be.

    Raises:
        UsageError: a later augury wrote it.
    """
    said = _metadata(path)
    if (number := said.get("augury_format", "")).isdecimal():
        check_format(int(number[:9]), str(path))
    try:
        return Description.model_validate(said)
    except ValueError:
        return Description()


def _metadata(path: Path) -> dict[str, str]:
    """Of a file of safetensors; empty for any other."""
    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def read_weights(path: Path, subject: str) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or a timm checkpoint, of which timm takes the averaged ones.

    Args:
        path: of the file.
        subject: what an error begins with.

    Raises:
        UsageError: the file cannot be read, is damaged, or holds other things.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise UsageError(
            f"{subject}: no such file or folder. Give a run's folder, an exported one, or a file: safetensors, or a "
            "timm checkpoint."
        )
    try:
        # A checkpoint is a pickle, and may hold anything: nothing in it is carried out.
        weights = load_state_dict(str(path), device="cpu", weights_only=True)
        if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()):
            raise ValueError("it holds other things than weights")
        content = _metadata(path).get("content")
        damaged = content is not None and content != _content(weights)
    except Exception as error:
        raise UsageError(
            f"{subject}: cannot be read ({type(error).__name__}). Give a file of safetensors or a timm checkpoint."
        ) from None
    if damaged:
        raise UsageError(
            f"{subject}: damaged: its weights are not those of which its metadata have the digest, `content`. Bring a "
            "copy back, or train it anew."
        )
    return weights


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, which `timm.create_model(..., checkpoint_path=path)` loads where they are a
    network's; `content` of the metadata is a digest of them."""
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with replacing(path) as partial:
        save_file(here, partial, metadata | {"content": _content(here)})


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file that `save_weights` wrote, and its metadata.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    try:
        with safe_open(str(path), "pt") as file:
            said = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    if said.pop("content", "") != _content(found):
        raise ValueError("its content is not what was written")
    return found, said


def _content(tensors: dict[str, Tensor]) -> str:
    found: Any = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return found.hexdigest()


def other_model(said: Description, model: str) -> str | None:
    """Why the network of a file is not the one named; None where it is, or where the file says nothing. The weights
    that timm has for a network, behind the dot of its name, make it no other one."""
    if said.model is None or said.model.partition(".")[0] == model.partition(".")[0]:
        return None
    return f"holds a `{said.model[:80]}`, and this run trains a `{model}`"


def misfit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The first tensor in which weights are not those of a network, and how many more there are; nothing where they
    are."""
    faults = [f"`{name}` is missing" for name in own if name not in weights]
    faults += [f"`{name}` has no place" for name in weights if name not in own]
    faults += [
        f"`{name}` has the shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return faults[0] + more if faults else ""


def short(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(name[:40] for name in names[:3]) + (", ..." if len(names) > 3 else "")
