"""Files of weights: how they are read, and what one that augury wrote says of its network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Json
from safetensors import SafetensorError, safe_open
from torch import Tensor

from augury.config import Count, Positive
from augury.errors import UsageError

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


def describe(path: Path) -> Description:
    """What a file says of its network; nothing where it is no safetensors, or says what cannot be."""
    try:
        with safe_open(str(path), "pt") as file:
            return Description.model_validate(file.metadata() or {})
    except (OSError, ValueError, SafetensorError):
        return Description()


def read_weights(path: Path, subject: str) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or a timm checkpoint, of which timm takes the averaged ones.

    Args:
        path: of the file.
        subject: what an error begins with.

    Raises:
        UsageError: the file cannot be read, or holds other things.
    """
    from timm.models import load_state_dict

    if not path.is_file():
        raise UsageError(f"{subject}: no such file. Give one of safetensors or a timm checkpoint.")
    try:
        # A checkpoint is a pickle, and may hold anything: nothing in it is carried out.
        weights = load_state_dict(str(path), device="cpu", weights_only=True)
        if not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()):
            raise ValueError("it holds other things than weights")
        return weights
    except Exception as error:
        raise UsageError(
            f"{subject}: cannot be read ({type(error).__name__}). Give a file of safetensors or a timm checkpoint."
        ) from None
