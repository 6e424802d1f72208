"""The lines that every run begins with: its images, its classes, its network and device, its methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from augury.choice import Chosen
from augury.distributed import Ranks
from augury.errors import one_line
from augury_train.config import RunConfig
from augury_train.data.view import DataSet
from augury_train.training.optimisation import choose_precision
from augury_train.training.plan import Plan
from augury_train.training.watch import Reporter

LISTED = 10
"""Classes up to which all are named."""
SOME = 3
"""Classes that are named of more."""
LETTERS = 30
"""Longest name or value, in characters."""
WIDTH = len("augmented")
"""Width of the labels before the lines; those of a dry run have it too."""
SPLITS = {"train": "training", "val": "validation", "test": "test"}


def start_fields(plan: Plan) -> dict[str, str]:
    """Describe what a run runs on, by `data`, `classes`, `model` and `methods`. No image is read."""
    network, config = plan.network, plan.config
    frozen = network.parameters - network.trained
    processes = Ranks().size
    return {
        "data": _images(config.data.dataset, plan.data),
        "classes": _classes(plan.data.classes, plan.data.splits.train.labels.bincount().tolist()),
        "model": f"{config.model.name}, {_millions(network.parameters)} parameters"
        + (f", {_millions(frozen)} of them frozen" if frozen else "")
        + f", on {device_name(config)}, {precision_name(config)}"
        + (f", {processes} processes" if processes > 1 else ""),
        "methods": ", ".join(map(_method, plan.chosen)) or "none",
    }


def labelled(fields: Mapping[str, str]) -> list[str]:
    """Return a line for each field, with its label in front."""
    return [one_line(f"{label:<{WIDTH}}  {text}") for label, text in fields.items()]


def introduce(plan: Plan, reporter: Reporter) -> None:
    """Tell a reporter what a run runs on."""
    for line in labelled(start_fields(plan)):
        reporter.note(line)


def device_name(config: RunConfig) -> str:
    """Return the name of the GPU that a run uses, or `cpu`."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else "cpu"


def precision_name(config: RunConfig) -> str:
    """Return `fp32`, `bf16` or `fp16`: the precision of the forward pass."""
    precision = choose_precision(config)
    return "fp32" if precision == "no" else precision


def _images(name: str, data: DataSet) -> str:
    counts = {split: getattr(data.splits, split) for split in SPLITS}
    told = ", ".join(f"{len(split):,} {SPLITS[key]}" for key, split in counts.items() if split is not None)
    channels, height, width = data.format.size
    return (
        f"{name}: {told} images, {height}x{width}, {channels} channel{'' if channels == 1 else 's'}"
        + (f"; tested at {data.format.test.side}x{data.format.test.side}" if data.format.test is not None else "")
        + ("; no test split" if counts["test"] is None else "")
    )


def _classes(names: Sequence[str], counts: Sequence[int]) -> str:
    """Return the number of classes, their names, and how many training images they have; folded where many."""
    number, few, most = len(names), min(counts), max(counts)
    smallest, largest = (_short(names[counts.index(count)]) for count in (few, most))
    if few == most:
        told = f"{number} with {few:,} training images each"
    elif number <= LISTED:
        return f"{number}, with training images: " + ", ".join(
            f"{_short(name)} ({count:,})" for name, count in zip(names, counts, strict=True)
        )
    else:
        told = f"{number} with {few:,} ({smallest}) to {most:,} ({largest}) training images"
    shown = names if number <= LISTED else names[:SOME]
    more = f" and {number - SOME} more" if number > LISTED else ""
    return f"{told}: {', '.join(map(_short, shown))}{more}"


def _method(chosen: Chosen) -> str:
    """Return a method's name with the options that differ from its defaults."""
    told = []
    for name, field in type(chosen.options).model_fields.items():
        value = getattr(chosen.options, name)
        plain = isinstance(value, str | int | float | bool | list | tuple | dict) or value is None
        if not plain:
            # Only Python can give such a value, and comparing it may mean anything.
            told.append(f"{name}=<{type(value).__name__}>")
        elif field.is_required() or value != field.get_default(call_default_factory=True):
            told.append(f"{name}={_short(value)}")
    return chosen.name + (f"({', '.join(told)})" if told else "")


def _short(value: Any) -> str:
    """Return a name or a value as the lines quote it: cut, and in quotes where its ends would not be seen."""
    text = str(value)
    text = text if len(text) <= LETTERS else f"{text[:LETTERS]}..."
    return f"`{text}`" if text != text.strip() or not text or (set(text) & set(",()")) else text


def _millions(count: int) -> str:
    return f"{count:,}" if count < 10_000 else f"{count / 1e6:.2f} M"
