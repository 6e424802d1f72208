"""A trained network as it is used: with its classes and its way to see images, without its data and its methods."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from PIL import Image
from torch import Tensor, nn

from augury.errors import UsageError
from augury.outside import given_path
from augury_train.backbones.trained import with_weights
from augury_train.backbones.weights import BEST, EXPORTED, Description, describe, in_folder, read_weights
from augury_train.config import ModelConfig
from augury_train.data.geometry import centre_square, centre_start
from augury_train.data.view import MOST, ImageFormat, pixels_of
from augury_train.training.facts import DATA
from augury_train.training.result import RESULT

Weights = Literal["best", "last"]
_NEEDED = ("model", "model_args", "classes", "test_input_size", "test_kept_size", "interpolation", "mean", "std")
"""What a file must say of its network."""


@dataclass
class Classifier:
    """A trained network with what it takes to ask it.

    Attributes:
        path: the file of its weights.
        model: its name in timm's registry.
        model_args: further arguments of `timm.create_model`.
        network: in evaluation mode, float32, on `device`; its parameters ask for no gradient.
        classes: names by label.
        format: how an image enters it.
        device: where it is.
        notes: what the user may not expect, a line each.
    """

    path: Path
    model: str
    model_args: dict[str, Any]
    network: nn.Module
    classes: list[str]
    format: ImageFormat
    device: torch.device
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._mean, self._std = (
            torch.tensor(values, device=self.device)[:, None, None] for values in (self.format.mean, self.format.std)
        )

    def prepare(self, image: Image.Image) -> Tensor:
        """An image as the network's evaluation saw images: its centre square resized, and cropped.

        Args:
            image: of mode RGB or L, upright, of any size.

        Returns:
            channels x side x side uint8.
        """
        form = self.format
        image = image.convert("L" if form.channels == 1 else "RGB")
        kept = torch.from_numpy(pixels_of(centre_square(image, form.kept, form.interpolation)).copy())
        start = centre_start(form.kept, form.side)
        return kept[:, start : start + form.side, start : start + form.side]

    def logits(self, images: Tensor) -> Tensor:
        """What the network says.

        Args:
            images: N x channels x side x side uint8, on any device.

        Returns:
            N x C float32, on `device`.
        """
        with torch.no_grad():
            shown = (images.to(self.device, non_blocking=True).float() / 255 - self._mean) / self._std
            return cast(Tensor, self.network(shown)).float()


def load_classifier(place: Path | str, weights: Weights = "best", device: str = "auto") -> Classifier:
    """A trained network, ready to be asked; neither its data nor its methods are needed.

        classifier = augury.load_classifier("runs/first")
        for row in augury.predict(classifier, ["photos"]):
            print(row.file, row.classes[0], row.probabilities[0])

    Args:
        place: a run folder, a folder that `augury export` wrote, or a file of weights that augury wrote.
        weights: of a run's best epoch, or of its last.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: no such weights, or they do not say what they were trained for.
    """
    there = choose_device(device)
    path, notes = find_weights(given_path(place, "RUN"), weights)
    held, said = read_weights(path, str(path)), describe(path)
    if missing := [key for key in _NEEDED if getattr(said, key) is None]:
        what = " and ".join(missing) if len(missing) < len(_NEEDED) else "model, classes and preprocessing"
        raise UsageError(
            f"{path}: does not say its {what}, as weights of augury do. "
            "Give a run folder, or what `augury export --format safetensors` wrote."
        )
    form = _format(path, said)
    model, arguments, classes = str(said.model), dict(said.model_args or {}), list(said.classes or [])
    # Built for the images of its training: what is fixed in size allows no other for testing.
    size = said.input_size or form.size
    network = with_weights(ModelConfig(name=model, kwargs=arguments), size, classes, held, path)
    network.to(there).eval().requires_grad_(False)
    return Classifier(path, model, arguments, network, classes, form, there, notes)


def find_weights(place: Path, weights: Weights = "best") -> tuple[Path, list[str]]:
    """The file of weights that a place stands for, and what is to be said of it, a line each.

    Args:
        place: a run folder, an exported folder, or a file.
        weights: of a run's best epoch, or of its last.

    Raises:
        UsageError: there are none.
    """
    if weights not in get_args(Weights):
        raise UsageError(f"weights must be one of {', '.join(get_args(Weights))}, got `{weights}`.")
    # Unlike pathlib's own, these take what cannot be looked at for what is not there.
    if not os.path.isdir(place):
        if not os.path.isfile(place):
            raise UsageError(f"{place}: no such file or folder. Give a run's folder, or what `augury export` wrote.")
        if place.suffix == ".onnx":
            raise UsageError(
                f"{place}: is ONNX, which onnxruntime runs. Give its run's folder, or what `augury export` writes "
                "without --format."
            )
        _refuse_last(place, weights)
        return place, []
    path = in_folder(place, f"{weights}.safetensors")
    if path is not None and path.name == EXPORTED and not os.path.isfile(place / DATA):
        _refuse_last(place, weights)
        return path, []
    if path is None and not os.path.isfile(place / DATA):
        raise UsageError(f"{place}: neither run nor {EXPORTED}. Give a run's folder, or what `augury export` wrote.")
    path, finished = run_weights(place, weights)
    return path, [] if finished else [f"{place} is not finished: these are its best weights so far."]


def _refuse_last(place: Path, weights: Weights) -> None:
    if weights == "last":
        raise UsageError(f"{place}: has one set of weights. Leave out --weights, or give a run's folder.")


def run_weights(folder: Path, weights: Weights) -> tuple[Path, bool]:
    """A run's file of weights, and whether the run is finished.

    Raises:
        UsageError: they are not there, or not yet.
    """
    path, finished = folder / f"{weights}.safetensors", (folder / RESULT).exists()
    if path.is_file():
        return path, finished
    if finished:
        raise UsageError(f"{folder} has no {path.name}, though its training is finished. Train it anew.")
    when = "at the end of an epoch" if weights == "best" else "at the end of its training"
    other = ", or take --weights best" if (folder / BEST).is_file() else ""
    raise UsageError(
        f"{folder} is not finished: {path.name} is written {when}. Go on with `augury resume {folder}`{other}."
    )


def choose_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = re.fullmatch(r"cpu|cuda(?::(0|[1-9][0-9]{0,8}))?", name)
    if known is None:
        raise UsageError(f"--device must be one of auto, cpu, cuda, cuda:N, got `{name}`.")
    if name != "cpu" and int(known[1] or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: torch sees {torch.cuda.device_count()} GPU(s) here. Use --device auto.")
    return torch.device(name)


def _format(path: Path, said: Description) -> ImageFormat:
    """How images enter the network of a file.

    Raises:
        UsageError: what it says of that does not fit together.
    """
    channels, side, width = cast(tuple[int, int, int], said.test_input_size)
    kept, mean, std = cast(int, said.test_kept_size), said.mean or [], said.std or []
    if side != width or channels not in (1, 3) or not side <= kept <= MOST or {len(mean), len(std)} != {channels}:
        raise UsageError(
            f"{path}: its image sizes, channels and normalisation do not fit each other. Give a file that augury wrote."
        )
    return ImageFormat(channels, side, kept, str(said.interpolation), tuple(mean), tuple(std))
