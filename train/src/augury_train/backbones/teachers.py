"""Trained networks of any architecture, that see a run's images as their own training saw images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from augury.distributed import Ranks
from augury.errors import UsageError
from augury_train.backbones.building import build, default_cfg, fixed_size
from augury_train.backbones.trained import with_weights
from augury_train.backbones.weights import describe, locate, read_weights, save_weights, short
from augury_train.config import ModelConfig
from augury_train.formats import FORMAT

NETWORKS = "networks"
"""The folder of a run's folder in which they are kept."""
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(nn.Module):
    """A trained network behind the change of normalisation from a run's images to its own.

    Attributes:
        network: the network itself.
        size: height and width that it takes, where it takes one size alone; others are resized.
        order: its logit of each of the run's classes; None where they are in the same order.
        own: mean and standard deviation of each channel that its images were normalised with.
        precision: of its pass: `no` (float32), `bf16` or `fp16`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: nn.Module,
        own: tuple[Sequence[float], Sequence[float]],
        run: tuple[Sequence[float], Sequence[float]],
        size: tuple[int, int] | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        """Wrap a network.

        Args:
            network: images M x ch x H x W -> logits M x C.
            own: mean and standard deviation of each channel, on the scale of [0, 1], that its images were normalised
                with.
            run: those of the run's images.
            size, order: as the attributes.
        """
        super().__init__()
        self.network, self.size, self.precision = network, size, "no"
        self.own = tuple(map(list, own))
        self.order = None if order is None or list(order) == sorted(order) else list(order)
        (mean, std), (run_mean, run_std) = (
            (torch.tensor(m, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)) for m, s in (own, run)
        )
        # (x * run_std + run_mean - mean) / std
        self.register_buffer("scale", (run_std / std).float()[:, None, None])
        self.register_buffer("shift", ((run_mean - mean) / std).float()[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Images M x ch x H x W float, normalised as the run's -> logits M x C float32."""
        images = images.float() * self.scale + self.shift
        if self.size is not None and images.shape[2:] != self.size:
            images = nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        dtype = _PRECISIONS.get(self.precision)
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            logits: Tensor = self.network(images)
        return (logits if self.order is None else logits[:, self.order]).float()


@dataclass(frozen=True)
class Images:
    """The images of a run, and their classes.

    Attributes:
        size: (channels, height, width).
        mean, std: of each channel on the scale of [0, 1], with which they are normalised.
        classes: names by label.
    """

    size: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    classes: Sequence[str]


def read_teacher(
    place: str, model: ModelConfig, images: Images, keep: Path | None = None, ranks: Ranks | None = None
) -> Teacher:
    """Read a trained network for the images and classes of a run.

    Args:
        place: a run's folder, whose best weights are meant, an exported folder, a file of weights, or a name of timm's,
            whose pretrained weights are meant.
        model: the run's own network, for files that do not say theirs.
        images: of the run.
        keep: the folder in which the network is kept, and found again; not kept when None.
        ranks: the processes that share that folder.

    Raises:
        UsageError: no such weights, or they are of other classes or channels.
    """
    digest = hashlib.blake2b(place.encode(), digest_size=8).hexdigest()
    kept = None if keep is None else keep / f"{digest}.safetensors"
    # All processes look before the first one writes.
    is_there = kept is not None and os.path.isfile(kept)
    if ranks is not None:
        is_there = ranks.gather_objects(is_there)[0]
    with torch.random.fork_rng(devices=[]):
        if is_there:
            return _of_file(str(kept), model, images)[0]
        named = timm.is_model(place.split(".")[0]) and not os.path.exists(place)
        found, config = _of_timm(place, images) if named else _of_file(place, model, images)
    if kept is not None and (ranks is None or ranks.rank == 0):
        kept.parent.mkdir(exist_ok=True)
        save_weights(kept, found.network.state_dict(), _metadata(config, found, images))
    if ranks is not None:
        ranks.gather_objects(None)
    return found.eval()


def _of_file(place: str, model: ModelConfig, images: Images) -> tuple[Teacher, ModelConfig]:
    path = locate(place, place)
    said = describe(path)
    weights = read_weights(path, str(path))
    if said.model is not None:
        model = ModelConfig(name=said.model, kwargs=said.model_args or {})
    theirs = list(images.classes if said.classes is None else said.classes)
    if sorted(theirs) != sorted(images.classes):
        told = " and ".join(f"{len(names)} ({short(names)})" for names in (theirs, images.classes))
        raise UsageError(f"{path} was trained on other classes than this run has: {told}. Give one of these classes.")
    size = said.input_size or images.size
    if size[0] != images.size[0]:
        raise UsageError(
            f"{path} was trained on images of {size[0]} channel(s), this run's have {images.size[0]}. Give another one."
        )
    network = with_weights(model, size, theirs, weights, path)
    normalised = said.mean or images.mean, said.std or images.std
    fixed = size[1:] if fixed_size(model) else None
    order = [theirs.index(name) for name in images.classes]
    return Teacher(network, normalised, (images.mean, images.std), fixed, order), model


def _of_timm(name: str, images: Images) -> tuple[Teacher, ModelConfig]:
    config, cfg = ModelConfig(name=name, pretrained=True), default_cfg(name)
    channels, classes = images.size[0], len(images.classes)
    if cfg.get("num_classes") != classes:
        raise UsageError(
            f"{name}: timm's pretrained weights know {cfg.get('num_classes')} classes, this run has {classes}. Train "
            f"one on these images: augury run --model {name} --pretrained, and give that run."
        )
    if channels != len(cfg["mean"]):
        raise UsageError(
            f"{name}: timm's pretrained weights want images of {len(cfg['mean'])} channels, this run's have {channels}."
            " Give a run that was trained on such images."
        )
    own = tuple(cfg["input_size"][1:])
    fixed = own if fixed_size(config) else None
    network = build(config, classes, (channels, *(fixed or images.size[1:])))
    return Teacher(network, (cfg["mean"], cfg["std"]), (images.mean, images.std), fixed), config


def _metadata(config: ModelConfig, found: Teacher, images: Images) -> dict[str, str]:
    """What a kept file says, so that it is read as the one that it was kept of."""
    order = found.order or range(len(images.classes))
    classes = [images.classes[list(order).index(label)] for label in range(len(images.classes))]
    return {
        "model": config.name,
        "model_args": json.dumps(config.kwargs),
        "classes": json.dumps(classes),
        "input_size": json.dumps((images.size[0], *(found.size or images.size[1:]))),
        "mean": json.dumps(found.own[0]),
        "std": json.dumps(found.own[1]),
        "augury_format": json.dumps(FORMAT),
    }
