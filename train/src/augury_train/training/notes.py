"""What the user may not expect of a run, told before it begins."""

from __future__ import annotations

import math

import torch
from torch import nn

from augury.batch import PIPELINES
from augury.choice import Chosen
from augury.composition import pipeline_shares
from augury_train.config import RunConfig
from augury_train.data.transforms import Transform
from augury_train.data.view import DataSet
from augury_train.training.labels import scaling_note
from augury_train.training.optimisation import Schedule

FEW = 50
"""Validation images; on fewer, one image is more than two points."""


def notes_of(
    config: RunConfig,
    chosen: list[Chosen],
    data: DataSet,
    transforms: dict[str, list[Transform]],
    loader: str,
    steps: int,
) -> tuple[str, ...]:
    """Return what the user may not expect of a run, a line each.

    Args:
        config: the run's settings.
        chosen: its methods.
        data: its images.
        transforms: of each pipeline, by name.
        loader: `memory` or `stream`.
        steps: optimiser steps of the whole run.
    """
    notes = list(data.notes)
    if data.skipped:
        notes.append(f"{len(data.skipped)} image(s) cannot be read and are left out; data.json names them.")
    val = data.splits.val
    if val is not None and len(val) < FEW:
        notes.append(
            f"the best epoch is chosen on {len(val)} validation images, by luck more than by accuracy. Hold out more "
            "with --set data.val_fraction=0.3, or look at the last epoch."
        )
    if config.data.protocol == "paper" and (config.train.patience or config.schedule.name == "plateau"):
        notes.append("data.protocol=paper: when to stop or to decay is decided on the test split, which flatters it.")
    if (line := scaling_note(config.train, data.splits.train.labels, len(data.classes))) is not None:
        notes.append(line)
    if config.format == 1 and (config.schedule.warmup_epochs or config.train.ema is not None):
        notes.append(
            "these settings are of format 1: the warm-up of the learning rate and train.ema mean what they meant when "
            "the settings were written. `format = 2` in a new file gives them today's meaning (see docs/changes.md)."
        )
    notes += _schedule_notes(config, steps) + _average_notes(config, steps)
    used = pipeline_shares(chosen, PIPELINES)
    if transforms["base"] == transforms["augmented"] and sum(share > 0 for share in used.values()) > 1:
        notes.append(
            "both pipelines are the same, so nothing tells base from augmented images. "
            'Set one, for example with --set "data.augmented=randaugment crop:4 flip".'
        )
    crops = any(type(t).__name__ == "RandomResizedCrop" for part in transforms.values() for t in part)
    if loader == "memory" and crops and data.splits.train.source.size is None:
        notes.append(
            f"images are kept in memory as their centre square of {data.format.kept} pixels, and random_resized_crop "
            "crops from that. To crop from whole images: --set data.loader=stream."
        )
    return tuple(notes)


def _schedule_notes(config: RunConfig, steps: int) -> list[str]:
    """Lines about learning rates that the user may not expect."""
    schedule, epochs = config.schedule, config.optim.epochs
    notes: list[str] = []
    if schedule.name not in ("constant", "none", "plateau") and _last_rate(config, steps) >= config.optim.lr:
        notes.append(
            f"schedule.name={schedule.name}: with these settings the learning rate does not fall in the {epochs} "
            "epochs of this run. Look at schedule.milestones, schedule.decay_epochs and schedule.every."
        )
    if not schedule.warmup_epochs:
        return notes
    early = [milestone for milestone in schedule.milestones if milestone <= schedule.warmup_epochs]
    if schedule.name == "multistep" and early:
        notes.append(
            f"schedule.milestones={early} lie in the warm-up of {schedule.warmup_epochs} epochs, so the learning rate "
            "drops as soon as it has reached optim.lr."
        )
    if not schedule.warmup_prefix and schedule.name in ("cosine", "tanh", "poly", "step"):
        notes.append(
            "schedule.warmup_prefix=false: the learning rate after the warm-up is that of a curve which began with the "
            "training, and so below optim.lr."
        )
    return notes


def _last_rate(config: RunConfig, steps: int) -> float:
    """Return the learning rate of the run's last step."""
    epochs = config.optim.epochs
    trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
    schedule = Schedule(config.schedule, trial, epochs, max(1, steps // epochs))
    schedule.step(max(0, steps - 1))
    schedule.epoch(epochs - 1, None)
    return float(trial.param_groups[0]["lr"])


def _average_notes(config: RunConfig, steps: int) -> list[str]:
    """Lines about a decay of the moving average that the run is too short for."""
    decay = config.train.ema
    notes: list[str] = []
    if decay is None or steps < 2:
        return notes
    reached = 1 - steps ** (-2 / 3)
    left = decay ** (steps - 1)
    if config.train.ema_warmup and reached < decay:
        notes.append(
            f"train.ema={decay:g}: with train.ema_warmup the decay after t steps is at most 1 - t^(-2/3), and reaches "
            f"{reached:.4g} in the {steps:,} steps of this run. Any decay above that gives the same average."
        )
    if not config.train.ema_warmup and left > 0.01:
        notes.append(
            f"train.ema={decay:g} averages over some {1 / (1 - decay):,.0f} steps, and this run has {steps:,}: at its "
            f"end {100 * left:.0f} % of the average are the weights after the first step. Choose train.ema="
            f"{_at_most(0.01 ** (1 / (steps - 1)))} or less, or set train.ema_warmup=true."
        )
    return notes


def _at_most(decay: float) -> str:
    """Return `decay` rounded down, with two digits of its distance to 1."""
    digits = 1 - math.floor(math.log10(1 - decay))
    return f"{math.floor(decay * 10**digits) / 10**digits:.{digits}f}"
