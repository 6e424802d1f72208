"""Runs on few digits, small enough for a test: their settings, and what the trainer makes of them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import augury
from augury_train.config import RunConfig, read_config
from augury_train.training.plan import make_plan
from augury_train.training.recorder import read_rows
from augury_train.training.result import Result
from augury_train.training.trainer import Trainer, resume
from augury_train.training.watch import Interrupted, Silent

DROPOUT: dict[str, Any] = {"kwargs": {"drop_rate": 0.2}}
"""A `model` section whose network draws from torch's generator, which a resumed run must find where it was."""
TIMES = ("train_seconds", "images_per_second")


class Plain(nn.Module):
    """Two layers without BatchNorm or dropout, in timm's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 12
        self.stem = nn.Linear(64, 12)
        self.fc = nn.Linear(12, 10)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.stem(images.flatten(1))))


def small(*methods: str | tuple[str, dict[str, Any]], **sections: dict[str, Any]) -> RunConfig:
    """Settings of a run of two epochs of four steps; `sections` change them."""
    named = [m if isinstance(m, tuple) else (m, {}) for m in methods]
    values: dict[str, Any] = {
        "seed": 3,
        "device": "cpu",
        "data": {"images_per_class": 10, "augmented": "crop:1 cutout:3", "loader": "memory"},
        "optim": {"epochs": 2, "batch_size": 25, "lr": 0.05},
        "train": {"trackers": []},
        "methods": [{"name": name, "options": options} for name, options in named],
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return read_config(values)


def with_network(config: RunConfig, network: nn.Module, **how: Any) -> Trainer:
    """A trainer of a copy of `network` in place of the model's."""
    plan = make_plan(config)
    object.__setattr__(plan, "build_network", lambda: copy.deepcopy(network))
    return Trainer(plan, **how)


def losses_of(trainer: Trainer) -> list[float]:
    """The loss of each batch as the trainer makes it, all epochs."""
    losses: list[float] = []
    trainer.loop.step_module.register_forward_hook(lambda _, __, output: losses.append(float(output[0].detach())))
    trainer.methods.pre_train_stage()
    trainer.loop.run(lambda row: None)
    return losses


def batches_of(trainer: Trainer) -> Iterator[augury.Batch]:
    """The batches of all epochs, before any method changes them."""
    epochs = range(trainer.config.optim.epochs)
    return itertools.chain.from_iterable(trainer.loop.loader.epoch(epoch) for epoch in epochs)


def by_hand(
    trainer: Trainer,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[augury.Batch], torch.Tensor],
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """A loop as anybody writes it, over the trainer's batches.

    Args:
        trainer: whose batches they are.
        network: what is trained.
        optimizer: what trains it.
        loss_of: a batch's loss.
        after: called after each step with the number of steps done.

    Returns:
        the losses.
    """
    losses = []
    network.train()
    for step, batch in enumerate(batches_of(trainer), 1):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after(step)
        losses.append(float(loss.detach()))
    return losses


class StopsAfter(Silent):
    """Asks a trainer to stop after so many optimiser steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps
        self.trainer: Trainer | None = None

    def step(self, images: int) -> None:
        self._left -= 1
        if self._left == 0:
            assert self.trainer is not None
            self.trainer.stop.asked = True


def interrupted(config: RunConfig, folder: Path, steps: int) -> None:
    """Run for so many steps, and leave the checkpoint."""
    reporter = StopsAfter(steps)
    reporter.trainer = Trainer(make_plan(config), reporter=reporter)
    with pytest.raises(Interrupted, match="augury resume"):
        reporter.trainer.run(folder)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without the times."""
    return [
        {key: value for key, value in row.items() if key not in TIMES} for row in read_rows(folder / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Bit for bit the same rows and weights."""
    # The soak runs without pytest, which would tell the two values.
    rows, others = rows_of(one), rows_of(other)
    assert len(rows) == len(others), f"{len(rows)} and {len(others)} rows"
    for mine, theirs in zip(rows, others, strict=True):
        differing = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
        assert mine == theirs, f"`{differing[0]}` of epoch {mine['epoch']}"
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys(), f"{name}: other weights"
        for key, weights in expected.items():
            assert torch.equal(weights, found[key]), f"`{key}` of {name}"


def resumed(config: RunConfig, folder: Path, steps: int) -> Result:
    """Interrupt a run after so many steps and go on with it."""
    interrupted(config, folder, steps)
    return resume(folder)
