"""A run checked as a whole before anything of it is built: settings, methods, model and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from timm.optim import list_optimizers
from torch import nn

from augury import backbones
from augury.batch import PIPELINES
from augury.choice import Chosen, check, choose, conflicts
from augury.config import RunConfig
from augury.data.datasets import DataSet, check_dataset, load_dataset
from augury.data.transforms import Transform, parse
from augury.errors import UsageError, refuse_all, unknown
from augury.method import Spec
from augury.registry import Register

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What a run will be made of.

    Attributes:
        config: its settings.
        chosen: its methods.
        data: its images.
        spec: the facts that methods are told.
        transforms: of each pipeline, by name.
    """

    config: RunConfig
    chosen: list[Chosen]
    data: DataSet
    spec: Spec
    transforms: dict[str, list[Transform]]

    def build_network(self) -> nn.Module:
        """A network with fresh weights, drawn from torch's generator."""
        return backbones.build(self.config.model, len(self.data.classes), self.data.image_size)


def make_plan(config: RunConfig, register: Register | None = None, data: DataSet | None = None) -> Plan:
    """Check a run.

    Args:
        config: the run's settings.
        register: what method names mean; the built-in and the user's register when None.
        data: the images that `config.data` stands for, where they are loaded already.

    Raises:
        UsageError: all that is wrong, a line each.
    """
    problems: list[str] = []
    chosen, found = choose(config.named_methods(), register)
    problems += found + _device_problems(config.device)
    if config.optim.name not in list_optimizers():
        problems.append("optim.name: " + unknown("optimiser", config.optim.name, map(str, list_optimizers())))
    size = _or_problem(problems, lambda: backbones.default_size(config.model.name))
    _or_problem(problems, lambda: check_dataset(config.data))
    if data is None:
        # Decoding a folder of images takes its time, so what is wrong already is told first.
        refuse_all(problems + conflicts(chosen))
        assert size is not None
        data = load_dataset(config.data, size)
    transforms = _transforms(config, data, problems)
    facts = _or_problem(problems, lambda: backbones.inspect_model(config.model, len(data.classes), data.image_size))
    spec = _spec(config, data, facts)
    if facts is not None:
        views = max((c.cls.views for c in chosen), default=1)
        rows = config.optim.batch_size * views
        problems += check(chosen, spec, facts.classifier, rows=rows, model=config.model.name)
    images = len(data.train)
    if config.optim.batch_size > images:
        problems.append(
            f"optim.batch_size={config.optim.batch_size} is more than the {images} training images. "
            f"Set it with --set optim.batch_size={images} or less."
        )
    refuse_all(problems)
    return Plan(config, chosen, data, spec, transforms)


def _spec(config: RunConfig, data: DataSet, facts: backbones.Facts | None) -> Spec:
    steps = len(data.train) // config.optim.batch_size
    return Spec(
        num_classes=len(data.classes),
        num_features=facts.num_features if facts else None,
        image_size=data.image_size,
        total_steps=steps * config.optim.epochs,
        steps_per_epoch=steps,
        build_network=lambda: backbones.build(config.model, len(data.classes), data.image_size),
    )


def _transforms(config: RunConfig, data: DataSet, problems: list[str]) -> dict[str, list[Transform]]:
    base = data.transforms if config.data.base is None else config.data.base
    words = {"base": base, "augmented": base if config.data.augmented is None else config.data.augmented}
    return {name: _or_problem(problems, partial(parse, words[name], f"data.{name}")) or [] for name in PIPELINES}


def _device_problems(device: str) -> list[str]:
    if device not in ("auto", "cpu", "cuda"):
        return [f"config: key `device` must be one of auto, cpu, cuda, got {device!r}. Set it with --set device=cpu."]
    if device == "cuda" and not torch.cuda.is_available():
        return ["config: key `device` is cuda, but torch sees no GPU here. Set it with --set device=cpu."]
    return []


def _or_problem(problems: list[str], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except UsageError as error:
        problems += str(error).splitlines()
        return None
