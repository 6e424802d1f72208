"""A run before it is made: what it will be and cost, and what its first batch looks like."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from augury.batch import Batch
from augury.errors import UsageError
from augury.registry import Register
from augury_train.config import RunConfig
from augury_train.data.source import ArraySource
from augury_train.data.splits import Split, Splits
from augury_train.training.built import Built
from augury_train.training.costs import peak_bytes
from augury_train.training.plan import Plan, make_plan
from augury_train.training.processes import join
from augury_train.training.start_lines import device_name, introduce, labelled, precision_name, start_fields
from augury_train.training.watch import Reporter, Silent


@dataclass(frozen=True)
class Rehearsal:
    """What a run will be made of, and what two of its steps took.

    Attributes:
        model, methods, loader: as the run will use them.
        parameters, trained_parameters: of the network.
        method_parameters: of the methods.
        image_size: (channels, height, width).
        classes: how many.
        images: in each split.
        pipelines: the words of each.
        precision: of the forward pass.
        epochs, steps_per_epoch, batch_size: the length.
        step_seconds: time of the second step.
        epoch_seconds: of an epoch's steps at that rate, without evaluation, and without reading images.
        peak_bytes: largest memory: of the device on a GPU, else of this process; None where that cannot be known.
        start_lines: what every run begins with: images, classes, network and device, methods.
        notes: what may not be expected.
    """

    model: str
    methods: list[str]
    parameters: int
    trained_parameters: int
    method_parameters: int
    device: str
    precision: str
    image_size: tuple[int, int, int]
    classes: int
    images: dict[str, int]
    loader: str
    pipelines: dict[str, list[str]]
    epochs: int
    steps_per_epoch: int
    batch_size: int
    step_seconds: float
    epoch_seconds: float
    peak_bytes: int | None
    start_lines: tuple[str, ...]
    notes: tuple[str, ...]


def rehearse(config: RunConfig, register: Register | None = None) -> Rehearsal:
    """Build all of a run and take two steps, on noise of the images' shape; pre-train stages are rehearsed likewise.
    Nothing is written and no image is read.

    Raises:
        UsageError: anything that `make_plan` refuses.
    """
    join(config)
    plan = make_plan(config, register)
    clock = _Clock()
    trainer = Built(_on_noise(plan), reporter=clock)
    trainer.methods.pre_train_stage()
    clock.times = []
    trainer.loop.run(lambda row: None)
    step = clock.times[1] - clock.times[0]
    splits = {name: getattr(plan.data.splits, name) for name in ("train", "val", "test")}
    steps = len(plan.data.splits.train) // config.optim.batch_size
    data = config.data
    base = plan.data.transforms if data.base is None else data.base
    return Rehearsal(
        model=config.model.name,
        methods=[c.name for c in plan.chosen],
        parameters=plan.network.parameters,
        trained_parameters=plan.network.trained,
        method_parameters=sum(p.numel() for p in trainer.methods.parameters()),
        device=device_name(config),
        precision=precision_name(config),
        image_size=plan.data.format.size,
        classes=len(plan.data.classes),
        images={name: len(split) for name, split in splits.items() if split is not None},
        loader=plan.loader,
        pipelines={"base": base, "augmented": base if data.augmented is None else data.augmented},
        epochs=config.optim.epochs,
        steps_per_epoch=steps,
        batch_size=config.optim.batch_size,
        step_seconds=step,
        epoch_seconds=step * steps,
        peak_bytes=peak_bytes(trainer.accelerator.device),
        start_lines=tuple(labelled(start_fields(plan))),
        notes=plan.notes,
    )


def preview(
    config: RunConfig, *, columns: int = 8, register: Register | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Pictures as matplotlib figures: of what a run's first batch becomes (`batch`), and of what the pre-train stages,
    which are run for it, show (`<method>/<name>`).

    Args:
        config: the run's settings.
        columns: images of each view to show.
        register: what method names mean.
        reporter: who watches the stages.

    Raises:
        UsageError: anything that `make_plan` refuses, or an image that cannot be read.
    """
    plan = make_plan(config, register)
    introduce(plan, reporter or Silent())
    trainer = Built(plan, reporter=reporter)
    trainer.methods.pre_train_stage()
    batch = _first_batch(trainer)
    trainer.loop.loader.close()
    if (shown := len(batch) // batch.views) < columns and reporter is not None:
        reporter.note(f"a batch has {shown} images, so {shown} are shown. For more: --set optim.batch_size={columns}.")
    return {"batch": trainer.picture(batch, columns), **trainer.figures}


def _first_batch(trainer: Built) -> Batch:
    """The first batch of which the methods leave something, as they leave it."""
    for batch in trainer.loop.loader.epoch(0):
        trainer.loop.labels.prepare(batch)
        trainer.methods.augment_batch(batch)
        if len(batch):
            return batch
    raise UsageError(
        "preview: the methods leave no image of any batch of an epoch. Raise optim.batch_size, or leave out the option "
        "that chooses among a batch's images."
    )


def passes_on_noise(plan: Plan, epochs: int) -> int:
    """Rows that go through a network to train in so many epochs of two batches of noise, pre-train stages included."""
    trainer = Built(_on_noise(plan, epochs))
    trainer.methods.pre_train_stage()
    trainer.loop.run(lambda row: None)
    return trainer.passes


class _Clock(Silent):
    """Notes when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, images: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def _on_noise(plan: Plan, epochs: int = 1) -> Plan:
    """The plan with two batches of noise for its images, few epochs, and nothing that only a longer run has."""
    data, form, config = plan.data, plan.data.format, plan.config
    rows = 2 * config.optim.batch_size
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (rows, form.channels, form.kept, form.kept), dtype=np.uint8)
    labels = np.arange(rows, dtype=np.int64) % len(data.classes)
    split = Split(ArraySource(pixels, labels), torch.arange(rows))
    splits = Splits(split, split.take(torch.arange(min(rows, 8))), None)
    # Weights of classes that so few images may not show would be infinite.
    train = config.train.model_copy(update={"class_weights": None, "trackers": []})
    optim = config.optim.model_copy(update={"epochs": epochs})
    schedule = config.schedule.model_copy(update={"name": "constant", "warmup_epochs": 0})
    short = config.model_copy(update={"optim": optim, "schedule": schedule, "train": train})
    noise = dataclasses.replace(data, splits=splits, _decoded={})
    return dataclasses.replace(plan, config=short, data=noise, loader="memory")
