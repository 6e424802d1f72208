"""Networks with the weights that were trained for the same task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from augury.errors import UsageError
from augury_train.backbones.building import build, untrained
from augury_train.backbones.weights import describe, locate, misfit, other_model, read_weights, short
from augury_train.config import ModelConfig


def trained_network(
    config: ModelConfig,
    image_size: tuple[int, int, int],
    classes: Sequence[str],
    place: str,
    wanted: Mapping[str, Any],
) -> nn.Module:
    """A network with the weights that a run, or whoever, trained for the same task.

    Args:
        config: the model's section of the settings; what it would start from does not count.
        image_size: (channels, height, width) of the images of its training.
        classes: their names by label.
        place: a run folder, whose best weights are meant, an exported folder, or a file: safetensors, or a timm
            checkpoint.
        wanted: the `mean` and `std` that its images are normalised with.

    Raises:
        UsageError: no such weights, or those of another model, other classes or other images.
    """
    path = locate(place, place)
    found = describe(path)
    if why := other_model(found, config.name):
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
    return with_weights(config, image_size, classes, read_weights(path, f"{path}"), path)


def with_weights(
    config: ModelConfig,
    image_size: tuple[int, int, int],
    classes: Sequence[str],
    weights: Mapping[str, Tensor],
    path: Path,
) -> nn.Module:
    """A network with just these weights; the draws of torch's generator stay as they were.

    Args:
        config, image_size, classes: as for `trained_network`.
        weights: by name.
        path: where they are from.

    Raises:
        UsageError: they are not those of this network.
    """
    config = untrained(config)
    with torch.random.fork_rng(devices=[]):
        # Without memory first: a file from anywhere may name a network far larger than what it holds.
        with torch.device("meta"):
            fault = misfit(weights, build(config, len(classes), image_size).state_dict())
        if fault:
            raise UsageError(
                f"{path}: its weights are not those of a `{config.name}` of {len(classes)} classes: {fault}. "
                "Give one of that model and these classes."
            )
        network = build(config, len(classes), image_size)
    network.load_state_dict(weights)
    return network
