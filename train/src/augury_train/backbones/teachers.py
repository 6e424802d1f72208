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
        size: height and width that it takes, where it takes one size alone; images of another size are resized.
        order: the position of each of the run's classes among its logits; None where they are in the same order.
        precision: of its pass: `no` (float32), `bf16` or `fp16`.
    """

    scale: Tensor
    shift: Tensor
    order: Tensor | None

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
        moved = order is not None and list(order) != sorted(order)
        self.register_buffer("order", torch.tensor(order) if moved else None)
        (mean, std), (run_mean, run_std) = (
            (torch.tensor(m, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)) for m, s in (own, run)
        )
        # (x * run_std + run_mean - mean) / std
        self.register_buffer("scale", (run_std / std).float()[:, None, None])
        self.register_buffer("shift", ((run_mean - mean) / std).float()[:, None, None])
        self.eval()

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
    # A network's first weights are drawn, and the run's own draws must not depend on that.
    with torch.random.fork_rng(devices=[]):
        if is_there:
            return _of_file(str(kept), model, images)[0]
        named = timm.is_model(place.split(".")[0]) and not os.path.exists(place)
        found, metadata = _of_timm(place, images) if named else _of_file(place, model, images)
    if kept is not None and (ranks is None or ranks.rank == 0):
        kept.parent.mkdir(exist_ok=True)
        save_weights(kept, found.network.state_dict(), metadata)
    if ranks is not None:
        ranks.gather_objects(None)
    return found


def _of_file(place: str, model: ModelConfig, images: Images) -> tuple[Teacher, dict[str, str]]:
    """Return the network of a file, and what a copy of the file must say to be read as the same."""
    path = locate(place, place, "network")
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or folder, and timm has no model of that name. Give a run's folder, an exported "
            "one, a file of weights, or a name of `augury backbones` that has pretrained weights."
        )
    said = describe(path)
    weights = read_weights(path, str(path))
    model = ModelConfig(name=said.model or model.name, kwargs=(said.model_args or {}) if said.model else model.kwargs)
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
    own = said.mean or images.mean, said.std or images.std
    fixed = size[1:] if fixed_size(model) else None
    order = [theirs.index(name) for name in images.classes]
    return Teacher(network, own, (images.mean, images.std), fixed, order), _metadata(model, size, own, theirs)


def _of_timm(name: str, images: Images) -> tuple[Teacher, dict[str, str]]:
    """Return a pretrained network of timm's, and what a copy of it must say to be read as the same. Its classes are
    taken to be in the run's order."""
    config, cfg = ModelConfig(name=name, pretrained=True), default_cfg(name)
    channels, classes = images.size[0], len(images.classes)
    advice = f"Train one on these images (augury run --model {name}), and give that run."
    if not any(cfg.get(source) for source in ("url", "file", "hf_hub_id")):
        raise UsageError(f"{name}: timm has no pretrained weights of it. {advice}")
    if cfg.get("num_classes") != classes:
        raise UsageError(
            f"{name}: timm's pretrained weights know {cfg.get('num_classes')} classes, this run has {classes}. {advice}"
        )
    if channels != len(cfg["mean"]):
        raise UsageError(
            f"{name}: timm's pretrained weights want images of {len(cfg['mean'])} channel(s), this run's have "
            f"{channels}. {advice}"
        )
    fixed = tuple(cfg["input_size"][1:]) if fixed_size(config) else None
    size = (channels, *(fixed or images.size[1:]))
    own = cfg["mean"], cfg["std"]
    teacher = Teacher(build(config, classes, size), own, (images.mean, images.std), fixed)
    return teacher, _metadata(config, size, own, images.classes)


def _metadata(
    model: ModelConfig, size: Sequence[int], own: tuple[Sequence[float], Sequence[float]], classes: Sequence[str]
) -> dict[str, str]:
    return {
        "model": model.name,
        "model_args": json.dumps(model.kwargs),
        "classes": json.dumps(list(classes)),
        "input_size": json.dumps(list(size)),
        "mean": json.dumps(list(own[0])),
        "std": json.dumps(list(own[1])),
        "augury_format": json.dumps(FORMAT),
    }
