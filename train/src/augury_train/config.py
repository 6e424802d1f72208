"""A run's settings: what recipes, `--set` and `augury.train` fill in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from augury.errors import UsageError
from augury.outside import DEEPEST, oddity, parse_json, parse_toml, read_text
from augury.validation import Strict, explain
from augury_train.files import write_text
from augury_train.formats import FORMAT, check_format

RECIPE_NOTES = ("title", "source", "published")
"""Keys of a recipe that describe it and set nothing."""


def _words(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


PipelineWords = Annotated[list[str], BeforeValidator(_words)]
"""A pipeline as a list of words, or as one text with spaces between them: "crop:4 flip cutout:16"."""


Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def _some(value: Any) -> Any:
    return (
        [name for name in re.split(r"[,\s]+", value) if name not in ("", "none")] if isinstance(value, str) else value
    )


Trackers = Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(_some)]
"""Trackers as a list of names, or as one text with commas between them; "none" is none of them."""


class DataConfig(Strict):
    """Which images, how they are split and what happens to them."""

    dataset: str = Field(
        "digits",
        description="a name (digits, fashion_mnist, cifar10, cifar100, svhn), a folder of images, a reader of timm's "
        "(hfds/..., wds/..., a tar of images), or `synthetic:`",
    )
    loader: Literal["auto", "memory", "stream"] = Field(
        "auto",
        description="`memory` keeps all images on the training device, `stream` reads them in worker processes; "
        "`auto`: memory where they fit",
    )
    workers: int | None = Field(
        None, ge=0, le=256, description="processes that read for `stream`; the number of cores, at most 8, when unset"
    )
    skip_bad_images: bool = Field(False, description="leave out images that cannot be read, instead of stopping")
    image_size: int | None = Field(
        None, ge=1, le=4096, description="side in pixels; the named data set's own, or the model's, when unset"
    )
    test_size: int | None = Field(
        None, ge=1, le=4096, description="side at which validation and test images are shown; image_size when unset"
    )
    crop_pct: float | None = Field(
        None, ge=0.1, le=1, description="share of the side that the centre crop keeps; the model's when unset"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how images are resized; the model's when unset"
    )
    mean: list[float] | None = Field(None, description="of each channel on the scale of [0, 1]; the model's when unset")
    std: list[Positive] | None = Field(None, description="of each channel likewise")
    protocol: Literal["validation", "paper"] = Field(
        "validation",
        description="`validation` holds out a split and chooses the best epoch on it; `paper` trains on all training "
        "images and reports the last and the best test epoch",
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the training images held out, unless there is a val folder"
    )
    test_fraction: float = Field(
        0.3, gt=0, lt=1, description="share held out for testing where the data set has no test split"
    )
    split_seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="seed of the splits; its own, so that runs with different seeds share their splits",
    )
    images_per_class: int | None = Field(None, ge=1, description="train on so many images of each class only")
    subset: str | None = Field(
        None, description="train on the images that this file names only (`augury uncertainty --keep` writes one)"
    )
    base: PipelineWords | None = Field(
        None, description="transforms of pipeline `base`; the data set's usual ones when unset"
    )
    augmented: PipelineWords | None = Field(
        None, description="transforms of pipeline `augmented`; those of `base` when unset"
    )


class ModelConfig(Strict):
    """The network."""

    name: str = Field("resnet20_cifar", description="any name timm knows")
    pretrained: bool = Field(False, description="start from the weights that timm downloads for this name")
    init_from: str | None = Field(
        None,
        description="start from these weights: a file (safetensors, or a timm checkpoint), an exported folder, or a "
        "run's folder, whose best weights are taken",
    )
    frozen_stages: int = Field(
        0, ge=0, description="how many stages, the stem first, keep the weights and statistics they start with"
    )
    grad_checkpointing: bool = Field(
        False, description="compute blocks once more in the backward pass, which saves memory and costs time"
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm.create_model")

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        # What config.json of older runs calls it.
        if isinstance(values, Mapping) and "checkpoint" in values and "init_from" not in values:
            return {"init_from" if key == "checkpoint" else key: value for key, value in values.items()}
        return values


class OptimConfig(Strict):
    """Optimiser and length."""

    name: str = Field("sgd", description="any optimiser timm knows; `sgd` is with Nesterov momentum")
    lr: float = Field(0.1, gt=0, description="highest learning rate: at the end of the warm-up, or at the beginning")
    momentum: float = Field(0.9, ge=0, lt=1, description="for optimisers that have one")
    weight_decay: float = Field(5e-4, ge=0, description="as the optimiser applies it")
    decay_norm_and_bias: bool = Field(
        True, description="decay the parameters of norms and biases too, as the papers' programs do"
    )
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="factor of the learning rate from layer to layer; norms and biases are never decayed then",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="further arguments of timm's optimiser")
    epochs: int = Field(30, ge=1, le=1_000_000, description="passes over the training images")
    batch_size: int = Field(128, ge=1, description="images in an optimiser step, over all processes")
    accumulation: int = Field(
        1, ge=1, description="parts in which a step's images pass the network, to save memory; must divide batch_size"
    )
    sam: float | None = Field(
        None,
        gt=0,
        description="train with sharpness-aware minimisation: take each step's gradient at weights that were moved so "
        "far up the loss (its rho; the paper: 0.05). A step passes the network twice",
    )
    clip: float | None = Field(None, gt=0, description="bound of the gradients")
    clip_mode: Literal["norm", "value", "agc"] = Field(
        "norm", description="bound their global norm, each value, or their norm against the weights' (adaptive)"
    )


class ScheduleConfig(Strict):
    """The learning rate over time."""

    name: Literal["cosine", "multistep", "step", "constant", "tanh", "poly", "wsd", "rsqrt", "plateau", "none"] = Field(
        "cosine", description="a schedule of timm's"
    )
    every: Literal["step", "epoch"] = Field("step", description="how often the learning rate changes")
    warmup_epochs: int = Field(
        0, ge=0, description="epochs in which the learning rate rises to `optim.lr`; part of `optim.epochs`"
    )
    warmup_lr: float = Field(1e-5, ge=0, description="where the warm-up starts")
    warmup_prefix: bool = Field(
        True,
        description="let the curve begin after the warm-up, at `optim.lr`; false: it begins with the training, and the "
        "warm-up is laid over its first part, after which the rate drops onto the curve (timm's default)",
    )
    length: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="epochs that `cosine`, `tanh`, `poly`, `wsd` or `rsqrt` spans, warm-up included, where training is "
        "to end earlier; `optim.epochs` when unset",
    )
    min_lr: float = Field(0.0, ge=0, description="where the schedule ends")
    milestones: list[Count] = Field(
        default_factory=list, max_length=1000, description="epochs of the training at which `multistep` decays"
    )
    decay_epochs: float | None = Field(
        None,
        gt=0,
        description="epochs between the decays of `step` (90 when unset), or that the decay of `wsd` or `rsqrt` takes "
        "(a fifth of the curve when unset; below 1: that share of it)",
    )
    decay_rate: float = Field(0.1, gt=0, description="factor of each decay (`poly`: the power; 1 is a straight line)")
    patience: int = Field(10, ge=0, description="epochs without a better accuracy before `plateau` decays")


class TrainConfig(Strict):
    """How the loop trains."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the forward pass; `auto`: bf16 on GPUs that have it, else fp32"
    )
    compile: bool = Field(False, description="compile the network with torch.compile")
    channels_last: bool = Field(False, description="lay tensors out with the channels last")
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="keep an exponential moving average of the weights with this decay a step; it begins with the "
        "weights after the first step",
    )
    ema_warmup: bool = Field(
        False, description="let the decay of `train.ema` rise: after t steps it is at most 1 - t^(-2/3)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of every label, before methods change any")
    class_weights: Literal["balanced"] | list[Positive] | None = Field(
        None,
        description="weights of the classes in the loss: `balanced` (inverse to how frequent they are), or a list; "
        "scaled so that their mean over the training images is 1",
    )
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better accuracy")
    save_every: int | None = Field(
        None, ge=1, description="steps between checkpoints, beside those after each epoch and when asked to stop"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop",
        description="where a step's loss or gradient is not finite: `stop` the run, or `skip` the step, of which "
        "nothing remains",
    )
    auto_batch: bool = Field(
        False, description="where memory runs out, go on with half the images at once: `optim.accumulation` doubles"
    )
    sync_bn: bool = Field(False, description="let BatchNorm see the images of all processes as one batch")
    trackers: Trackers = Field(default=["tensorboard"], description="where the numbers go beside metrics.jsonl")


class MethodConfig(Strict):
    """One method of the composition."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class RunConfig(Strict):
    """Everything that decides a run's result."""

    format: int = Field(
        FORMAT, ge=1, le=FORMAT, description="format of these settings; a file without a number is of format 1"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of fresh weights, of the order and of every draw")
    device: str = Field("auto", description="`auto`, `cpu` or `cuda`")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig = TrainConfig()
    methods: list[MethodConfig] = Field(default_factory=list, max_length=100, description="in the order of application")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_format(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("format") == 1:
            # What these settings were before they existed.
            for section, key, before in (("schedule", "warmup_prefix", False), ("train", "ema_warmup", True)):
                inside = values.get(section, {})
                if isinstance(inside, Mapping):
                    values = {**values, section: {key: before, **inside}}
        return values

    def named_methods(self) -> list[tuple[str, dict[str, Any]]]:
        """The composition in the form that `augury.compose` takes."""
        return [(m.name, m.options) for m in self.methods]


def read_config(values: Mapping[str, Any], subject: str = "config") -> RunConfig:
    """Check settings. Without a `format` they are of the present one; those of a file go through `from_file` first.

    Raises:
        UsageError: every unknown key (with the nearest one) and every value out of range, a line each.
    """
    check_format(values.get("format", FORMAT), subject)
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError("\n".join(explain(error, RunConfig, subject, "key", "--set {path}={value}"))) from None


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at `a.b.c` into nested `values`, making the sections on the way; `methods.NAME.OPTION` is an option
    of a method that is in the list already."""
    *parents, last = path.split(".")
    if len(parents) > DEEPEST:
        raise UsageError(f"{path[:80]}...: no setting is nested so deeply. Example: --set optim.epochs=5.")
    if parents[:1] == ["methods"]:
        _assign_option(values.get("methods", []), path, parents[1:], last, value)
        return
    for key in parents:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UsageError(f"{path}: `{key}` is a value, no section. Example: --set optim.epochs=5.")
    values[last] = value


def _assign_option(methods: Any, path: str, inside: list[str], option: str, value: Any) -> None:
    listed = [m for m in methods if isinstance(m, dict)] if isinstance(methods, list) else []
    named = [m["name"] for m in listed if isinstance(m.get("name"), str)]
    if len(inside) != 1 or inside[0] not in named:
        used = f"{' and '.join(named)} here" if named else "and none is used here"
        example = f"--set methods.{named[0]}.{option}={value}" if named else "--with NAME:OPTION=VALUE"
        raise UsageError(f"{path} must be methods.NAME.OPTION, NAME a method of the run, {used}. Example: {example}.")
    method = next(m for m in listed if m.get("name") == inside[0])
    options = method.get("options", {})
    # What is no table of options, is told with all else that is wrong.
    method["options"] = {**options, option: value} if isinstance(options, dict) else options


def assign_text(values: dict[str, Any], assignment: str) -> None:
    """Put one `a.b=value` of the command line into nested `values`; the value is read as TOML, else taken as text."""
    path, sign, text = assignment.partition("=")
    if not sign or not all(path.split(".")):
        raise UsageError(f"--set takes key=value, got {assignment!r}. Example: --set optim.epochs=5.")
    assign(values, path.strip(), read_value(text.strip()))


def read_value(text: str) -> Any:
    """A TOML value (5, 0.1, true, "x", [1, 2]), else the text itself.

    Raises:
        UsageError: a value that no setting can have, a number of more than 64 bits say.
    """
    try:
        # What follows a line break would be a key of its own.
        value = text if "\n" in text else parse_toml(f"value = {text}")["value"]
    except ValueError:
        value = text
    if isinstance(value, date | time):
        # JSON, which keeps settings, has no word for it.
        value = text
    if why := oddity(value):
        raise UsageError(f"the value {text[:80]!r} {why}.")
    return value


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Read one method of the command line: `name` or `name:option=value,option=value`."""
    name, _, rest = text.strip().partition(":")
    options = {}
    # A comma inside a value, as in a list, is not followed by `word=`.
    for part in re.split(r",(?=\s*\w+\s*=)", rest) if rest else []:
        key, sign, value = part.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--with {text}: `{part}` must be option=value. Example: --with {name}:option=0.5.")
        options[key.strip()] = read_value(value.strip())
    if not name:
        raise UsageError(f"--with takes name or name:option=value, got {text!r}.")
    if "," in name:
        parts = [part.strip() for part in name.split(",")]
        raise UsageError(
            f"--with {text}: give each method a --with of its own; in a comparison, join them with + "
            f"({'+'.join(parts)}), or compare each alone with --with-each {name}."
        )
    return name, options


def parse_composition(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Read a composition of the command line: methods with `+` between them."""
    return [parse_method(part) for part in text.split("+")]


def read_recipe(path: Path, kind: str = "recipe") -> dict[str, Any]:
    """The settings in a TOML recipe, or in a run folder's config.json: the sections of a run's settings; what only
    describes the recipe is left out."""
    try:
        text = read_text(path)
        values = parse_json(text) if path.suffix == ".json" else parse_toml(text)
        if not isinstance(values, dict):
            raise ValueError("it holds no settings")
        if why := oddity(values):
            raise ValueError(why)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{kind} {path}: no such file. Give the path of a TOML file.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{kind} {path}: cannot be read: {error}.") from None
    return from_file(values)


def from_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in what a recipe holds: without what describes it, and of format 1 where it says none."""
    return {"format": 1} | {key: value for key, value in values.items() if key not in RECIPE_NOTES}


def save_config(config: RunConfig, path: Path) -> None:
    """Write every setting, defaults included, as JSON."""
    write_text(path, json.dumps(config.model_dump(), indent=2) + "\n")


def load_config(path: Path) -> RunConfig:
    """Read what `save_config` wrote.

    Raises:
        UsageError: there is none, or what is wrong in it.
    """
    try:
        values = parse_json(read_text(path))
        if not isinstance(values, dict):
            raise ValueError("it holds no settings")
        if why := oddity(values):
            raise ValueError(why)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path.parent}: no run folder, it has no {path.name}. Give the folder that `augury run` wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}.") from None
    return read_config({"format": 1} | values, subject=str(path))
