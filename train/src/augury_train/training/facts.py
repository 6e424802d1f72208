"""What a run folder says of its data and its weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from augury.errors import UsageError
from augury.outside import RECORDED, parse_json, read_text
from augury.validation import explain
from augury_train.data.subset import digest_of
from augury_train.data.view import DataSet, ImageFormat, crop_share
from augury_train.formats import FORMAT
from augury_train.training.environment import versions
from augury_train.training.plan import Plan

DATA = "data.json"


def data_facts(plan: Plan) -> dict[str, Any]:
    """The images of a run: the classes by label, the size of each split, how they enter the network."""
    data, form = plan.data, plan.data.format
    test = form.test or form
    chosen = {} if plan.config.data.subset is None else {"subset": digest_of(data.splits.train.rows)}
    return {
        "dataset": plan.config.data.dataset,
        **chosen,
        "classes": data.classes,
        "images": _counts(data),
        "loader": plan.loader,
        "channels": form.channels,
        "image_size": form.side,
        "kept_size": form.kept,
        "test_size": test.side,
        "test_kept_size": test.kept,
        "interpolation": form.interpolation,
        "mean": form.mean,
        "std": form.std,
        "skipped": list(data.skipped),
    }


def stage_facts(plan: Plan) -> dict[str, Any]:
    """What decides what a method's pre-train stage makes, beside the method: everything but the methods, and where
    numbers go."""
    # Which images a subset names is what counts, not where it lies: the data's facts tell.
    settings = plan.config.model_dump(
        mode="json", exclude={"methods": True, "train": {"trackers", "save_every", "auto_batch"}, "data": {"subset"}}
    )
    return {"settings": settings, "data": data_facts(plan), "versions": versions()}


@dataclass(frozen=True)
class Begun:
    """What a run folder says of the data that the run began with.

    Attributes:
        classes: by label.
        images: in each split.
        loader: `memory` or `stream`.
        format: how they enter the network.
    """

    classes: list[str]
    images: dict[str, int]
    loader: str
    format: ImageFormat


Side = Annotated[int, Field(ge=1, le=2**16)]


class _Said(BaseModel):
    """What of `data.json` is needed to go on."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    classes: list[str]
    images: dict[str, int]
    loader: Literal["memory", "stream"]
    # Literal[1, 3] would take true for 1.
    channels: Annotated[int, Field(ge=1, le=3)]
    image_size: Side
    kept_size: Side
    test_size: Side | None = None
    test_kept_size: Side | None = None
    interpolation: Literal["bilinear", "bicubic"]
    mean: Annotated[tuple[float, ...], Field(strict=False)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False)]


def begun(folder: Path) -> Begun:
    """Read what `data_facts` told.

    Raises:
        UsageError: it is missing or damaged.
    """
    path = folder / DATA
    try:
        values = parse_json(read_text(path, RECORDED))
        said = _Said.model_validate(values)
    except ValidationError as error:
        told = explain(error, _Said, str(path), "key", "{path}={value}")[0]
        raise UsageError(f"{told} Start the run anew.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}. Start the run anew.") from None
    train = ImageFormat(said.channels, said.image_size, said.kept_size, said.interpolation, said.mean, said.std)
    # Runs of before there was another size for testing do not say theirs.
    side, kept = said.test_size or train.side, said.test_kept_size or train.kept
    if (
        train.channels == 2
        or len(train.mean) != train.channels
        or len(train.std) != train.channels
        or train.kept < train.side
        or kept < side
    ):
        raise UsageError(f"{path}: cannot be read: its sizes and channels do not fit each other. Start the run anew.")
    test = dataclasses.replace(train, side=side, kept=kept)
    form = train if test == train else dataclasses.replace(train, test=test)
    return Begun(list(said.classes), dict(said.images), said.loader, form)


def check_same_data(folder: Path, before: Begun, data: DataSet) -> None:
    """Compare images with those that a run began with.

    Raises:
        UsageError: they are not the same.
    """
    for key, then, now in (("classes", before.classes, data.classes), ("images", before.images, _counts(data))):
        if then != now:
            raise UsageError(
                f"{folder}: the {key} are not those that the run began with: {_short(then)}, now {_short(now)}. "
                "Bring the old images back, or start a new run."
            )


def _counts(data: DataSet) -> dict[str, int]:
    splits = {name: getattr(data.splits, name) for name in ("train", "val", "test")}
    return {name: len(split) for name, split in splits.items() if split is not None}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def weights_metadata(plan: Plan) -> dict[str, str]:
    """What an exported network needs to be used: its model, its classes, its input."""
    form = plan.data.format
    return {
        "model": plan.config.model.name,
        "model_args": json.dumps(plan.config.model.kwargs),
        "classes": json.dumps(plan.data.classes),
        "input_size": json.dumps(form.size),
        "test_input_size": json.dumps((form.test or form).size),
        "test_kept_size": json.dumps((form.test or form).kept),
        "crop_pct": json.dumps(crop_share(form.side, form.kept)),
        "interpolation": form.interpolation,
        "mean": json.dumps(form.mean),
        "std": json.dumps(form.std),
        "weights": "raw" if plan.config.train.ema is None else "ema",
        "augury_format": json.dumps(FORMAT),
    }
