"""Trained weights to start from: timm's downloads, and files."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from augury.backbones.weights import BEST, describe, read_weights
from augury.config import ModelConfig
from augury.errors import UsageError


def overlay(checkpoint: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What makes timm start from a file's weights: an overlay of the model's pretrained cfg.

    The classifier is left out by timm where the file's has another number of classes.

    Args:
        checkpoint: safetensors, or a timm checkpoint.
        cfg: timm's pretrained cfg of the model.

    Raises:
        UsageError: the file cannot be read.
    """
    weights = read_weights(Path(checkpoint), f"model.checkpoint={checkpoint}")
    found: dict[str, Any] = {"state_dict": weights, "num_classes": -1}
    classifier = _first(cfg.get("classifier"))
    if f"{classifier}.weight" in weights:
        found["num_classes"] = len(weights[f"{classifier}.weight"])
    first = _first(cfg.get("first_conv"))
    if f"{first}.weight" in weights:
        found["input_size"] = (weights[f"{first}.weight"].shape[1], *cfg.get("input_size", (3, 224, 224))[1:])
    return found


def own_input(checkpoint: str | None) -> dict[str, Any] | None:
    """How the network of a file that augury exported wants its images, in the form of timm's data config; None for any
    other file."""
    found = describe(Path(str(checkpoint)))
    if None in (found.input_size, found.crop_pct, found.mean, found.std, found.interpolation):
        return None
    return found.model_dump(include={"input_size", "crop_pct", "mean", "std", "interpolation"})


def load_own(network: nn.Module, place: str, model: str, classes: Sequence[str], wanted: Mapping[str, Any]) -> None:
    """Give `network` the weights that a run, or whoever, trained for the same task.

    Args:
        network: takes them.
        place: a run folder, whose best weights are meant, or a file: safetensors, or a timm checkpoint.
        model: the network's name.
        classes: the names of its classes.
        wanted: the `mean` and `std` that its images are normalised with.

    Raises:
        UsageError: no such weights, or those of another model, other classes or other images.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        path = path / BEST
        if not path.is_file():
            raise UsageError(f"{place} has no {BEST}, which a run writes at the end of an epoch. Give another run.")
    said = describe(path).model_dump(include={"model", "classes", "mean", "std"}, exclude_none=True)
    if said.get("model", model) != model:
        raise UsageError(
            f"{path} holds a `{said['model'][:80]}`, and this run trains a `{model}`. Give one of that model."
        )
    theirs = list(said.get("classes", classes))
    if theirs != list(classes):
        told = " and ".join(f"{len(names)} ({_short(names)})" for names in (theirs, classes))
        raise UsageError(f"{path} was trained on other classes than this run has: {told}. Give one of these classes.")
    for key, ours in wanted.items():
        if list(said.get(key, ours)) != list(ours):
            raise UsageError(
                f"{path} was trained on images normalised with {key} {said[key]}, this run's have {list(ours)}. "
                f"Set it with --set 'data.{key}={json.dumps(said[key])}'."
            )
    weights, own = read_weights(path, f"{path}"), network.state_dict()
    faults = [f"`{name}` is missing" for name in own if name not in weights]
    faults += [f"`{name}` has no place" for name in weights if name not in own]
    faults += [
        f"`{name}` has the shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UsageError(
            f"{path}: its weights are not those of a `{model}` of {len(classes)} classes: {faults[0]}{more}. "
            "Give one of that model and these classes."
        )
    network.load_state_dict(weights)


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the download's own word on each of its tries: what came of them is told in one line."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first(names: Any) -> str | None:
    return names[0] if isinstance(names, list | tuple) else names


def explain(config: ModelConfig, error: Exception) -> str:
    """Why a network has not got its trained weights, and what to do."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if config.checkpoint is not None:
        return f"model.checkpoint={config.checkpoint}: its weights are not those of `{config.name}`: {why}"
    return (
        f"model `{config.name}`: its pretrained weights cannot be had: {why} "
        "Download them by hand and give the file with --set model.checkpoint=FILE, or leave out --pretrained."
    )
