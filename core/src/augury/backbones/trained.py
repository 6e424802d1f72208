"""Trained weights: found, held against a network, and told of where they do not fit."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from augury.backbones.weights import BEST, EXPORTED, Description, describe, read_weights
from augury.config import ModelConfig
from augury.errors import UsageError


def locate(place: str, subject: str) -> Path:
    """The file of weights that a place stands for.

    Args:
        place: a run folder, whose best weights are meant, an exported folder, or a file.
        subject: what an error begins with.

    Raises:
        UsageError: the folder has none. That there is such a file, is found when it is read.
    """
    path = Path(os.path.expanduser(place))
    with contextlib.suppress(OSError):
        if path.is_dir():
            found = next((path / name for name in (BEST, EXPORTED) if (path / name).is_file()), None)
            if found is None:
                raise UsageError(
                    f"{subject} has no {BEST}, which a run writes at the end of an epoch. Give another run, or a file."
                )
            return found
    return path


def other_model(said: Description, model: str) -> str | None:
    """Why the network of a file is not the one named; None where it is, or where the file says nothing. The weights
    that timm has for a network, behind the dot of its name, make it no other one."""
    if said.model is None or said.model.partition(".")[0] == model.partition(".")[0]:
        return None
    return f"holds a `{said.model[:80]}`, and this run trains a `{model}`"


def load_own(network: nn.Module, place: str, model: str, classes: Sequence[str], wanted: Mapping[str, Any]) -> None:
    """Give `network` the weights that a run, or whoever, trained for the same task.

    Args:
        network: takes them.
        place: a run folder, whose best weights are meant, an exported folder, or a file: safetensors, or a timm
            checkpoint.
        model: the network's name.
        classes: the names of its classes.
        wanted: the `mean` and `std` that its images are normalised with.

    Raises:
        UsageError: no such weights, or those of another model, other classes or other images.
    """
    path = locate(place, place)
    found = describe(path)
    if why := other_model(found, model):
        raise UsageError(f"{path} {why}. Give one of that model.")
    theirs = list(classes if found.classes is None else found.classes)
    if theirs != list(classes):
        told = " and ".join(f"{len(names)} ({short(names)})" for names in (theirs, classes))
        raise UsageError(f"{path} was trained on other classes than this run has: {told}. Give one of these classes.")
    said = found.model_dump(include={"mean", "std"}, exclude_none=True)
    for key, ours in wanted.items():
        if list(said.get(key, ours)) != list(ours):
            raise UsageError(
                f"{path} was trained on images normalised with {key} {said[key]}, this run's have {list(ours)}. "
                f"Set it with --set 'data.{key}={json.dumps(said[key])}'."
            )
    weights = read_weights(path, f"{path}")
    if fault := misfit(weights, network.state_dict()):
        raise UsageError(
            f"{path}: its weights are not those of a `{model}` of {len(classes)} classes: {fault}. "
            "Give one of that model and these classes."
        )
    network.load_state_dict(weights)


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


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the download's own word on each of its tries, and timm's on what it adapts: what came of it is told in
    one line."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm.models._builder")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def explain(config: ModelConfig, error: Exception) -> str:
    """Why a network has not got the weights that timm downloads, and what to do."""
    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"model `{config.name}`: its pretrained weights cannot be had: {why} "
        "Download them by hand and give the file with --init-from FILE, or leave out --pretrained."
    )
