"""A run checked as a whole before anything of it is built: settings, methods, model and data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from timm.optim import list_optimizers
from torch import nn

from augury.batch import PIPELINES
from augury.choice import Chosen, check, choose, conflicts
from augury.distributed import Ranks
from augury.errors import UsageError, refuse_all, unknown
from augury.method import Spec
from augury.outside import given_path
from augury.registry import Register
from augury_train import backbones
from augury_train.backbones import starting
from augury_train.backbones.teachers import Images, read_teacher
from augury_train.backbones.trained import trained_network
from augury_train.backbones.weights import BEST
from augury_train.config import ModelConfig, RunConfig
from augury_train.data.datasets import lasting_name, open_dataset
from augury_train.data.pipeline import parse
from augury_train.data.source import Collection
from augury_train.data.splits import split
from augury_train.data.transforms import Transform
from augury_train.data.view import DataSet, ImageFormat, choose_format, usual_transforms
from augury_train.machine import local_size
from augury_train.training import sharded
from augury_train.training.notes import notes_of
from augury_train.training.optimisation import SPANNING, Schedule, choose_precision
from augury_train.training.recorder import missing_trackers
from augury_train.training.result import RESULT

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What a run will be made of.

    Attributes:
        config: its settings.
        chosen: its methods.
        data: its images.
        network: what is known of the network before it is built.
        spec: the facts that methods are told.
        transforms: of each pipeline, by name.
        loader: `memory` or `stream`.
        notes: what the user may not expect, a line each.
    """

    config: RunConfig
    chosen: list[Chosen]
    data: DataSet
    network: backbones.Facts
    spec: Spec
    transforms: dict[str, list[Transform]]
    loader: str
    notes: tuple[str, ...]

    def build_network(self) -> nn.Module:
        """A network as training starts with it; fresh weights are drawn from torch's generator."""
        data = self.data
        return backbones.build(self.config.model, len(data.classes), data.format.size, data.classes)

    def from_scratch(self) -> Plan:
        """The same with fresh weights, for whoever has the trained ones."""
        plan = dataclasses.replace(
            self, config=self.config.model_copy(update={"model": backbones.untrained(self.config.model)})
        )
        return dataclasses.replace(plan, spec=dataclasses.replace(self.spec, build_network=plan.build_network))


def lasting(config: RunConfig) -> RunConfig:
    """The same settings with files and folders named so that a run is resumed from any folder.

    Raises:
        UsageError: there is no such data set, or the path cannot be used.
    """
    data = config.data.model_copy(update={"dataset": lasting_name(config.data.dataset)})
    if data.subset is not None:
        data = data.model_copy(update={"subset": str(given_path(data.subset, "data.subset").resolve())})
    model = config.model
    if model.init_from is not None:
        path = given_path(model.init_from, "model.init_from").resolve()
        model = model.model_copy(update={"init_from": str(path)})
    return config.model_copy(update={"data": data, "model": model})


def refuse_inside_data(folder: Path, config: RunConfig) -> None:
    """Raises: UsageError where a run would be written among the images, and be taken for a class of them."""
    data = Path(config.data.dataset)
    # Those of `lasting` are absolute, and names of data sets are not.
    if data.is_absolute() and data.is_dir() and folder.expanduser().resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"{folder} is inside the images' folder {data}, and would count as one of them. Choose another --output."
        )


def make_plan(
    config: RunConfig,
    register: Register | None = None,
    data: DataSet | None = None,
    begun: ImageFormat | None = None,
    fresh: bool = True,
) -> Plan:
    """Check a run. Nothing is decoded yet.

    Args:
        config: the run's settings.
        register: what method names mean; the built-in and the user's register when None.
        data: what `config` stands for, where it is open already.
        begun: how its images enter the network, where the run is to go on: what it began with may be gone.
        fresh: whether the methods' pre-train stages are still to come.

    Raises:
        UsageError: all that is wrong, a line each.
    """
    problems: list[str] = []
    chosen, found = choose(config.named_methods(), register)
    problems += found + _machine_problems(config) + _optim_problems(config) + _method_problems(config, chosen)
    wanted = _or_problem(problems, lambda: backbones.data_config(config.model.name))
    if wanted is not None and begun is None:
        _or_problem(problems, partial(backbones.check_start, config.model))
    if data is None:
        # Looking through a large folder takes its time, so what is wrong already is told with what is wrong there.
        collection = _or_problem(problems, lambda: open_dataset(config.data))
        refuse_all(problems + ([] if collection else conflicts(chosen)))
        assert wanted is not None
        assert collection is not None
        data = _or_problem(problems, partial(_data_set, config, collection, wanted, begun))
        refuse_all(problems + ([] if data else conflicts(chosen)))
        assert data is not None
    ready = data
    transforms = _transforms(config, ready, problems)
    facts = _or_problem(problems, lambda: backbones.inspect_model(config.model, len(ready.classes), ready.format.size))
    if facts is not None and ready.format.test is not None and backbones.fixed_size(config.model):
        problems.append(
            f"model `{config.model.name}` takes images of one size, here {ready.format.side}; data.test_size="
            f"{ready.format.test.side} is another. Leave data.test_size out, or choose another model."
        )
    spec = _spec(config, ready, facts)
    start = _start_notes(config.model, ready, problems, begun) if facts is not None else []
    if facts is not None:
        views = max((c.cls.views for c in chosen), default=1)
        rows = config.optim.batch_size // config.optim.accumulation * views
        problems += check(chosen, spec, facts.classifier, rows=rows, model=config.model.name, fresh=fresh)
    problems += _size_problems(config, ready)
    if facts is not None and spec.sharded:
        problems += sharded.problems(config, choose_precision(config), spec)
    refuse_all(problems)
    assert facts is not None
    loader = _loader(config, ready)
    notes = (*start, *notes_of(config, chosen, ready, transforms, loader, spec.total_steps or 0), *sharded.notes(spec))
    return Plan(config, chosen, ready, facts, spec, transforms, loader, notes)


def _data_set(
    config: RunConfig, collection: Collection, model: dict[str, object], begun: ImageFormat | None
) -> DataSet:
    if config.model.init_from is not None and begun is None:
        # Weights go on with the input that they were trained on.
        model = starting.own_input(config.model.init_from) or model
    form = begun or choose_format(config.data, collection, model, starts_trained(config.model))
    return DataSet(
        split(collection, config.data),
        collection.classes,
        form,
        usual_transforms(collection, form.side),
        tuple(collection.skipped),
        tuple(collection.notes),
    )


def starts_trained(config: ModelConfig) -> bool:
    """Whether a network starts from trained weights."""
    return config.pretrained or config.init_from is not None


def _start_notes(model: ModelConfig, data: DataSet, problems: list[str], begun: ImageFormat | None) -> list[str]:
    """What is to be said of trained weights that the network starts from."""
    notes: list[str] = []
    try:
        notes += backbones.start_notes(model, len(data.classes), data.format.size, data.classes)
    except UsageError as error:
        # A run that has begun may do without them.
        problems += str(error).splitlines() if begun is None else []
    place = Path(os.path.expanduser(model.init_from or ""))
    if notes and model.init_from is not None and (place / BEST).is_file() and not (place / RESULT).exists():
        notes.append(f"{place} is not finished: it is started from its best weights so far.")
    return notes


def _spec(config: RunConfig, data: DataSet, facts: backbones.Facts | None) -> Spec:
    steps = len(data.splits.train) // config.optim.batch_size
    return Spec(
        num_classes=len(data.classes),
        num_features=facts.num_features if facts else None,
        image_size=data.format.size,
        total_steps=steps * config.optim.epochs,
        steps_per_epoch=steps,
        starts_trained=starts_trained(config.model),
        num_images=len(data.splits.train),
        class_counts=tuple(data.splits.train.labels.bincount(minlength=len(data.classes)).tolist()),
        mean=data.format.mean,
        std=data.format.std,
        build_network=lambda: backbones.build(config.model, len(data.classes), data.format.size, data.classes),
        read_weights=partial(_read_weights, config.model, data),
        read_network=partial(_read_network, config.model, data),
        classes=tuple(data.classes),
        sharded=sharded.wanted(),
    )


def _read_network(model: ModelConfig, data: DataSet, place: str) -> nn.Module:
    """What `Spec.read_network` says."""
    return read_teacher(place, model, images_of(data))


def images_of(data: DataSet) -> Images:
    """What a network of another training is told of a run's images."""
    return Images(data.format.size, data.format.mean, data.format.std, data.classes)


def _read_weights(model: ModelConfig, data: DataSet, place: str) -> nn.Module:
    """What `Spec.read_weights` says."""
    form = data.format
    wanted = {"mean": form.mean, "std": form.std}
    return trained_network(model, form.size, data.classes, place, wanted).eval()


def _transforms(config: RunConfig, data: DataSet, problems: list[str]) -> dict[str, list[Transform]]:
    base = data.transforms if config.data.base is None else config.data.base
    words = {"base": base, "augmented": base if config.data.augmented is None else config.data.augmented}
    frame = data.format.frame
    return {name: _or_problem(problems, partial(parse, words[name], f"data.{name}", frame)) or [] for name in PIPELINES}


def _machine_problems(config: RunConfig) -> list[str]:
    problems, device = [], config.device
    if device not in ("auto", "cpu", "cuda"):
        problems.append(
            f"config: key `device` must be one of auto, cpu, cuda, got {device!r}. Set it with --set device=cpu."
        )
    elif device == "cuda" and not torch.cuda.is_available():
        problems.append("config: key `device` is cuda, but torch sees no GPU here. Set it with --set device=cpu.")
    elif choose_precision(config) == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        problems.append("train.precision=fp16 needs a GPU. Set it with --set train.precision=bf16, or fp32.")
    return problems + missing_trackers(config.train.trackers)


def _optim_problems(config: RunConfig) -> list[str]:
    optim, schedule, problems = config.optim, config.schedule, []
    if optim.name not in list_optimizers():
        problems.append("optim.name: " + unknown("optimiser", optim.name, map(str, list_optimizers())))
    if Ranks().size == 1 and optim.batch_size % optim.accumulation:
        problems.append(
            f"optim.accumulation={optim.accumulation} must divide optim.batch_size={optim.batch_size}. "
            "Set it with --set optim.accumulation=1."
        )
    if (processes := Ranks().size) > 1 and optim.batch_size % (processes * optim.accumulation):
        problems.append(
            f"optim.batch_size={optim.batch_size} must be a multiple of {processes} processes times "
            f"optim.accumulation={optim.accumulation}. Set it with --set optim.batch_size="
            f"{max(1, optim.batch_size // (processes * optim.accumulation)) * processes * optim.accumulation}."
        )
    if schedule.name == "multistep" and not schedule.milestones:
        problems.append(
            "schedule.name=multistep needs its epochs. Set them with "
            f"--set schedule.milestones=[{max(1, optim.epochs // 2)},{max(1, optim.epochs * 3 // 4)}]."
        )
    if schedule.warmup_epochs >= optim.epochs and schedule.warmup_epochs:
        problems.append(
            f"schedule.warmup_epochs={schedule.warmup_epochs} must be less than optim.epochs={optim.epochs}. "
            "Set it with --set schedule.warmup_epochs=0."
        )
    if schedule.name == "rsqrt" and not schedule.warmup_epochs:
        problems.append(
            "schedule.name=rsqrt falls in units of its warm-up, and there is none. Set one with "
            "--set schedule.warmup_epochs=1."
        )
    if schedule.length is not None and schedule.name not in SPANNING:
        problems.append(
            f"schedule.length={schedule.length}: schedule.name={schedule.name} has no end that it could move; "
            f"{', '.join(SPANNING)} have one. Leave schedule.length out."
        )
    elif schedule.length is not None and schedule.length < optim.epochs:
        problems.append(
            f"schedule.length={schedule.length} must be at least optim.epochs={optim.epochs}. Leave "
            "schedule.length out for a curve that ends with the training."
        )
    return problems


def _method_problems(config: RunConfig, chosen: list[Chosen]) -> list[str]:
    """A line for each setting that a method does not go with: one whose work is there after the last step alone, or one
    that mixes where a second computation would not."""
    names = [c.name for c in chosen if c.declares("keeps_last")]
    set_to = {"train.patience": config.train.patience, "train.ema": config.train.ema}
    ends = {
        "train.patience": "would end the training before that",
        "train.ema": "is another average, which would be kept instead",
    }
    inside = [c.name for c in chosen if c.declares("mixes_hidden")] if config.model.grad_checkpointing else []
    return [
        f"model.grad_checkpointing=true: {name} mixes inside the network, and blocks that are computed once more would "
        f"not be mixed. Set it to false, or leave {name} out."
        for name in inside
    ] + [
        f"{name} leaves its network after the last step, and {key}={value} {ends[key]}. Leave {key} out, or {name}."
        for name in names
        for key, value in set_to.items()
        if value is not None
    ]


def _size_problems(config: RunConfig, data: DataSet) -> list[str]:
    problems: list[str] = []
    images = len(data.splits.train)
    if config.optim.batch_size > images:
        problems.append(
            f"optim.batch_size={config.optim.batch_size} is more than the {images} training images. "
            f"Set it with --set optim.batch_size={images} or less."
        )
    if config.data.loader == "memory" and data.bytes > (free := psutil.virtual_memory().available):
        problems.append(
            f"data.loader=memory: the images take {data.bytes / 2**30:,.1f} GiB, and {free / 2**30:,.1f} are free. "
            "Set it with --set data.loader=stream, or lower data.image_size."
        )
    weights = config.train.class_weights
    if isinstance(weights, list) and len(weights) != len(data.classes):
        problems.append(
            f"train.class_weights must be {len(data.classes)} numbers, one for each class, got {len(weights)}. "
            "Set it with --set train.class_weights=balanced."
        )
    steps = images // config.optim.batch_size
    if steps and not any(line.startswith("schedule.") for line in _optim_problems(config)):
        trial = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.optim.lr)
        _or_problem(problems, lambda: Schedule(config.schedule, trial, config.optim.epochs, steps))
    return problems


def _loader(config: RunConfig, data: DataSet) -> str:
    """Memory where all images take less than a quarter of what is free."""
    if config.data.loader != "auto":
        return config.data.loader
    # Each process on this machine holds them all.
    fits = data.bytes * local_size() < psutil.virtual_memory().available / 4
    if config.device != "cpu" and torch.cuda.is_available():
        fits = fits and data.bytes < torch.cuda.mem_get_info()[0] / 4
    return "memory" if fits else "stream"


def _or_problem(problems: list[str], make: Callable[[], T]) -> T | None:
    try:
        return make()
    except UsageError as error:
        problems += str(error).splitlines()
        return None
