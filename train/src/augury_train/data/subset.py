"""Files that name some of a training split's images, for a run to train on those alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from augury.errors import UsageError
from augury.outside import RECORDED, given_path, parse_json, read_text
from augury_train.config import DataConfig, RunConfig
from augury_train.data.source import Source
from augury_train.files import replacing, write_text

FILE = "subset.json"
"""The file's name where a command writes one, and of the copy in a run's folder."""
DECIDING = ("protocol", "split_seed", "val_fraction", "test_fraction")
"""Settings that decide which images are held out."""
MAKE = "`augury uncertainty RUN --keep 0.15` writes one"
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "dataset": ((str,), "a text"),
    "classes": ((list,), "a list of texts"),
    "images": ((int,), "a whole number"),
    "labels": ((str,), "a text"),
    "rows": ((list,), "a list of whole numbers"),
    "protocol": ((str,), "a text"),
    "split_seed": ((int,), "a whole number"),
    "val_fraction": ((int, float), "a number"),
    "test_fraction": ((int, float), "a number"),
}
"""What a subset's file holds."""


def write_subset(
    path: Path, source: Source, rows: Tensor, classes: Sequence[str], config: DataConfig, made: Mapping[str, Any]
) -> None:
    """Write a subset.

    Args:
        path: the file.
        source: where the training split's images are read.
        rows: n int64, the source's images to train on.
        classes: their names by label.
        config: the data section of the run that they were chosen for.
        made: how they were chosen, for whoever reads the file.
    """
    content = {
        "dataset": config.dataset,
        "classes": list(classes),
        "images": len(source),
        "labels": _digest_of_labels(source),
        **{key: getattr(config, key) for key in DECIDING},
        "made": dict(made),
    }
    # The rows on one line: a reader wants to see the rest.
    head = json.dumps(content, indent=2).removesuffix("\n}")
    write_text(path, f'{head},\n  "rows": {json.dumps(rows.sort().values.tolist())}\n}}\n')


def subset_of(source: Source, rows: Tensor, classes: Sequence[str], config: DataConfig) -> Tensor:
    """Which of a training split's images `config.subset` names.

    Args:
        source: where they are read.
        rows: N int64, the training split's images in the source.
        classes: names by label.
        config: the run's data section.

    Returns:
        n int64, positions in `rows`, in order.

    Raises:
        UsageError: no such file, a damaged one, one of other images, or images that are held out here.
    """
    assert config.subset is not None
    path = given_path(config.subset, "data.subset")
    content = _read(path)
    found = {"images": len(source), "classes": list(classes), "labels": _digest_of_labels(source)}
    if any(content[key] != value for key, value in found.items()):
        raise UsageError(
            f"data.subset {path}: it names images of `{content['dataset']}` ({content['images']} images in "
            f"{len(content['classes'])} classes), and `{config.dataset}` here {_other(content, found)}. "
            "Choose the data set with --dataset, or make a subset of this one."
        )
    wanted = torch.tensor(content["rows"])
    missing = wanted[~torch.isin(wanted, rows)]
    if len(missing):
        differ = [f"data.{key}={content[key]}" for key in DECIDING if content[key] != getattr(config, key)]
        cure = f"It was made with {', '.join(differ)}: set that." if differ else "Make it of this training split."
        raise UsageError(
            f"data.subset {path}: {len(missing)} of its {len(wanted)} images are not in the training split, "
            f"`{source.name(int(missing[0]))}` first. {cure}"
        )
    return torch.nonzero(torch.isin(rows, wanted)).flatten()


def _other(said: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """What tells the data set here from the subset's."""
    if said["images"] != found["images"] or len(said["classes"]) != len(found["classes"]):
        return f"is another data set ({found['images']} in {len(found['classes'])})"
    if said["classes"] != found["classes"]:
        pairs = zip(said["classes"], found["classes"], strict=True)
        theirs, ours = next((a, b) for a, b in pairs if a != b)
        return f"has other classes (`{ours}` in the place of `{theirs}`)"
    return "has as many, but the images' labels differ: its files have changed since, or it is another data set"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_text(path, RECORDED))
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        for key, (kinds, what) in KINDS.items():
            # `isinstance` would take true for a whole number.
            if type(content[key]) not in kinds:
                raise ValueError(f"its `{key}` must be {what}, got {json.dumps(content[key])[:60]}")
        if not all(isinstance(name, str) for name in content["classes"]):
            raise ValueError("its `classes` must be a list of texts")
        rows = content["rows"]
        whole = all(type(row) is int and 0 <= row < content["images"] for row in rows)
        if not whole or not rows or len(set(rows)) < len(rows):
            raise ValueError("its `rows` must be different whole numbers below `images`, at least one")
        return content
    except FileNotFoundError:
        raise UsageError(f"data.subset {path}: no such file. {MAKE}.") from None
    except (OSError, ValueError, KeyError) as error:
        told = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"data.subset {path}: no subset can be read of it: {told}. {MAKE}.") from None


def keep_subset(config: DataConfig, folder: Path) -> None:
    """Copy a run's subset into the run's folder, so that the run can go on when the file is gone."""
    if config.subset is not None:
        with replacing(folder / FILE) as partial:
            shutil.copyfile(given_path(config.subset, "data.subset"), partial)


def own_subset(config: RunConfig, folder: Path) -> RunConfig:
    """The settings of the run in `folder`, reading the run's own copy of its subset."""
    if config.data.subset is None or not (folder / FILE).exists():
        return config
    data = config.data.model_copy(update={"subset": str((folder / FILE).resolve())})
    return config.model_copy(update={"data": data})


def digest_of(rows: Tensor) -> str:
    """What tells one choice of images from another."""
    return _digest(rows.numpy())


def _digest_of_labels(source: Source) -> str:
    return _digest(np.asarray(source.labels))


def _digest(numbers: NDArray[np.int64]) -> str:
    return hashlib.blake2b(numbers.astype("<i8").tobytes(), digest_size=8).hexdigest()
