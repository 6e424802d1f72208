"""The bounds of a run's settings: the values on either side of each, written out."""

from __future__ import annotations

from typing import Any

import pytest

from augury.errors import UsageError
from augury_train.config import RunConfig, read_config

# What is accepted at the bound, and what is refused beyond it.
BOUNDS: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "data.workers": ([0, 256], [-1, 257]),
    "data.image_size": ([1, 4096], [0, 4097]),
    "data.test_size": ([1, 4096], [0, 4097]),
    "data.crop_pct": ([0.1, 1], [0.09, 1.01]),
    "data.std": ([[0.1]], [[0], [-0.1]]),
    "data.val_fraction": ([0.01, 0.99], [0, 1]),
    "data.test_fraction": ([0.01, 0.99], [0, 1]),
    "data.split_seed": ([0, 2**32 - 1], [-1, 2**32]),
    "data.images_per_class": ([1], [0]),
    "model.frozen_stages": ([0], [-1]),
    "optim.lr": ([1e-9], [0, -0.1]),
    "optim.momentum": ([0, 0.99], [-0.1, 1]),
    "optim.weight_decay": ([0], [-1e-4]),
    "optim.layer_decay": ([0.1, 1], [0, 1.1]),
    "optim.epochs": ([1, 1_000_000], [0, 1_000_001]),
    "optim.batch_size": ([1], [0]),
    "optim.accumulation": ([1], [0]),
    "optim.clip": ([0.1], [0, -1]),
    "schedule.warmup_epochs": ([0], [-1]),
    "schedule.warmup_lr": ([0], [-1e-5]),
    "schedule.min_lr": ([0], [-1e-5]),
    "schedule.milestones": ([[1]], [[0]]),
    "schedule.decay_epochs": ([0.5], [0]),
    "schedule.decay_rate": ([0.1], [0]),
    "schedule.patience": ([0], [-1]),
    "train.ema": ([0.001, 0.999], [0, 1]),
    "train.label_smoothing": ([0, 0.99], [-0.1, 1]),
    "train.class_weights": ([[0.5, 1]], [[0, 1]]),
    "train.patience": ([1], [0]),
    "train.save_every": ([1], [0]),
}


def settings(key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.rpartition(".")
    return {section: {name: value}} if section else {name: value}


def read(key: str, value: Any) -> Any:
    config: Any = read_config(settings(key, value))
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (good, _) in BOUNDS.items() for value in good])
def test_a_value_at_its_bound_is_accepted(key: str, value: Any) -> None:
    assert read(key, value) == value


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, (_, bad) in BOUNDS.items() for value in bad])
def test_a_value_beyond_its_bound_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=key.replace(".", ".*")):
        read(key, value)


def test_every_default_is_one_that_may_be_set() -> None:
    config = RunConfig().model_dump()
    for key in BOUNDS:
        section, _, name = key.rpartition(".")
        default = config[section][name] if section else config[name]
        assert read(key, default) == default
