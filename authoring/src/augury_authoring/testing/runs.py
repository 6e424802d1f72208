"""Real runs, on digits: augury's own loop on the contract suite's network, and what it lends to pre-train stages."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from augury.batch import Batch
from augury.choice import Chosen, check
from augury_authoring.testing.faults import Fault, Watch, loss_faults
from augury_authoring.testing.harness import CLASSES, IMAGES, SEED, spec_of
from augury_authoring.testing.network import NAME, builder
from augury_train.config import read_config
from augury_train.data.named import open_named
from augury_train.data.source import ArraySource, Collection, Source
from augury_train.data.splits import split
from augury_train.data.view import DataSet, choose_format
from augury_train.training.built import Built
from augury_train.training.plan import Plan, make_plan

STEPS = 2


@functools.cache
def plan_of(channels: int, images: int) -> Plan:
    """A run without methods: one epoch of two steps of so many digits of 8 x 8, the pipelines apart."""
    config = read_config(
        {
            "seed": SEED,
            "device": "cpu",
            "data": {
                "dataset": "digits",
                "images_per_class": -(-STEPS * images // CLASSES),
                "base": "crop:1",
                "augmented": "crop:1 cutout:3",
                "loader": "memory",
            },
            # Dropout draws from torch's generator, which a run that is resumed must find where it was.
            "model": {"name": NAME, "kwargs": {"drop_rate": 0.1}},
            "optim": {"epochs": 1, "batch_size": images, "lr": 0.05},
            "train": {"precision": "fp32", "trackers": [], "save_every": 1},
        }
    )
    collection = _digits(channels)
    form = choose_format(config.data, collection, {"input_size": (3, 8, 8), "crop_pct": 1, **_LIKE}, pretrained=False)
    data = DataSet(split(collection, config.data), collection.classes, form, ["crop:1"])
    plan = make_plan(config, data=data)
    spec = dataclasses.replace(spec_of(channels), total_steps=plan.spec.total_steps, steps_per_epoch=STEPS)
    own = plan.spec
    spec = dataclasses.replace(
        spec,
        num_images=own.num_images,
        class_counts=own.class_counts,
        mean=own.mean,
        std=own.std,
        read_weights=own.read_weights,
        read_network=own.read_network,
    )
    return dataclasses.replace(plan, spec=spec)


_LIKE: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}


@functools.cache
def _digits(channels: int) -> Collection:
    """scikit-learn's digits, their one channel repeated."""
    found = open_named("digits")
    grey = found.splits["all"]
    assert isinstance(grey, ArraySource)
    assert found.mean is not None
    assert found.std is not None
    images = np.ascontiguousarray(grey.images.repeat(channels, axis=1))
    splits: dict[str, Source] = {"all": ArraySource(images, grey.labels, "digit")}
    return dataclasses.replace(found, splits=splits, mean=found.mean * channels, std=found.std * channels)


class StageHost(Built):
    """The run that pre-train stages borrow data and a trainer from. What augury's own trainer does to torch's global
    generator is undone, so that the rest is the method's doing."""

    def __init__(self, channels: int, images: int = IMAGES) -> None:
        super().__init__(plan_of(channels, images))

    def train_network(self, pipeline: str, key: str) -> nn.Module:
        """As `Built` does."""
        with torch.random.fork_rng(devices=[]):
            return super().train_network(pipeline, key)


@functools.cache
def host(channels: int, images: int) -> StageHost:
    """The one of that kind, made on first use."""
    with torch.random.fork_rng(devices=[]):
        return StageHost(channels, images)


def refusals(chosen: Sequence[Chosen], channels: int, images: int) -> list[str]:
    """Why a run of these methods would be refused before training, a line each."""
    plan, views = plan_of(channels, images), max((c.cls.views for c in chosen), default=1)
    classifier = builder(channels, CLASSES)().fc
    return check(chosen, plan.spec, classifier, rows=images * views, model=NAME)


@dataclass(frozen=True)
class Trained:
    """What a short run came to.

    Attributes:
        faults: what is wrong with its batches and losses.
        saved: its state after the first step, as a checkpoint has it.
        end: the network and the methods at its end.
    """

    faults: list[Fault]
    saved: bytes
    end: dict[str, Any]


def train(chosen: Sequence[Chosen], channels: int, images: int) -> Trained:
    """Train with these methods, stages included, as `augury run` does."""
    built = Built(dataclasses.replace(plan_of(channels, images), chosen=list(chosen)))
    found: list[Fault] = []
    saved: list[bytes] = []

    def look(_: nn.Module, inputs: tuple[Batch], output: tuple[Tensor, Tensor]) -> None:
        found.extend([*Watch(inputs[0], CLASSES).faults(inputs[0]), *loss_faults(output[0].detach(), "cpu")])

    def save() -> None:
        if not saved:
            file = io.BytesIO()
            torch.save(built.loop.state(), file)
            saved.append(file.getvalue())

    handle = built.loop.step_module.register_forward_hook(look)
    try:
        built.methods.pre_train_stage()
        end = _to_the_end(built, save)
    finally:
        handle.remove()
    return Trained(found, saved[0], end)


def resume(chosen: Sequence[Chosen], channels: int, images: int, saved: bytes) -> dict[str, Any]:
    """Go on from a saved state, as `augury resume` does; returns the network and the methods at the end."""
    built = Built(dataclasses.replace(plan_of(channels, images), chosen=list(chosen)))
    built.loop.restore(torch.load(io.BytesIO(saved), weights_only=True))
    return _to_the_end(built)


def _to_the_end(built: Built, save: Callable[[], None] | None = None) -> dict[str, Any]:
    built.loop.run(lambda row: float(len(built.methods.post_epoch(row))), save)
    network = {f"network.{key}": value for key, value in built.network.state_dict().items()}
    return network | dict(built.methods.state_dict())
