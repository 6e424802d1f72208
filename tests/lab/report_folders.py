"""Folders as runs and comparisons leave them, made up and small."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from augury_lab.experiment.suite import Composition, Suite, folder_of, save_suite
from augury_lab.experiment.table import Comparison, summarise, write
from augury_train.config import read_config
from augury_train.measures import Measures
from augury_train.training.result import Costs, Result, write_result

CLASSES = ("cat", "dog", "<script>alert('class')</script>")
NOTE = "a note </script><script>alert('note')</script>"
GAINS = {"baseline": 0.0, "isda": 1.5, "dcutmix:k=3": 3.0, "agmax": -4.0, "resmooth+isda": 0.1}


def methods_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The methods of a composition's name, as `--with` reads them."""
    if name == "baseline":
        return []
    parts = [part.partition(":") for part in name.split("+")]
    return [(method, dict(one.split("=", 1) for one in option.split(",") if one)) for method, _, option in parts]


def write_run(
    folder: Path, name: str = "isda", seed: int = 0, *, gain: float = 0.0, epochs: int = 8, done: int | None = None
) -> Result | None:
    """Write a run folder; an unfinished one with `done` epochs of `epochs`."""
    draw = random.Random(f"{name} {seed}")
    luck = random.Random(seed).gauss(0, 0.6)
    config = read_config(
        {
            "seed": seed,
            "data": {"augmented": "crop:1"},
            "optim": {"epochs": epochs, "lr": 0.03},
            "methods": [{"name": method, "options": options} for method, options in methods_of(name)],
        }
    )
    (folder / "figures" / "resmooth").mkdir(parents=True)
    dump(folder / "config.json", config.model_dump(mode="json"))
    images = {"train": 300, "val": 100, "test": 500}
    dump(
        folder / "data.json",
        {
            "dataset": "digits",
            "classes": list(CLASSES),
            "images": images,
            "loader": "memory",
            "channels": 1,
            "image_size": 8,
            "skipped": [],
        },
    )
    dump(
        folder / "environment.json",
        {
            "versions": {"python": "3.11.7", "torch": "2.15.0"},
            "methods": {"isda": "augury-isda 0.1.0"},
            "hardware": {"device": "cpu", "processor": "A & B <b>", "cores": 2, "memory_bytes": 8 * 2**30},
        },
    )
    values = np.random.default_rng(seed).integers(0, 255, (40, 120), dtype=np.uint8)
    Image.fromarray(values).save(folder / "figures" / "batch.png")
    Image.fromarray(values[:20]).save(folder / "figures" / "resmooth" / "losses.png")
    rows = [_epoch(epoch, epochs, gain + luck, draw) for epoch in range(1, (done or epochs) + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done is not None:
        return None
    best, last = _measures(gain + luck, draw), _measures(gain + luck - 0.4, draw)
    extra = 2 if "resmooth" in name else 1
    costs = Costs(10.0 * extra + draw.random(), 10.0 * (extra - 1), 900.0 / extra, 300 * epochs * extra, 0, 300_000_000)
    by_split = {"val": best, "test": best}
    result = Result(
        str(folder),
        epochs,
        "val",
        "raw",
        epochs - 1,
        by_split,
        {"val": last, "test": last},
        costs,
        [NOTE] * (seed == 0),
    )
    write_result(result, folder)
    return result


def write_suite(
    folder: Path, gains: Mapping[str, float] = GAINS, seeds: Sequence[int] = (0, 1, 2, 3), epochs: int = 8
) -> Comparison:
    """Write the folder of a finished comparison."""
    runs: dict[str, list[Result]] = {}
    for name, gain in gains.items():
        found = [write_run(folder_of(folder, name, s), name, s, gain=gain, epochs=epochs) for s in seeds]
        runs[name] = [result for result in found if result is not None]
    save(folder, list(gains), seeds)
    comparison = summarise(runs, next(iter(gains)), "test", "epochs", seeds, 500, folder)
    write(comparison)
    return comparison


def save(folder: Path, names: Sequence[str], seeds: Sequence[int]) -> None:
    """Write what the comparison was asked for."""
    folder.mkdir(exist_ok=True)
    config = read_config({"seed": seeds[0]})
    save_suite(Suite(config, {name: Composition(methods_of(name)) for name in names}, len(seeds)), folder)


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def _epoch(epoch: int, epochs: int, gain: float, draw: random.Random) -> dict[str, Any]:
    share = epoch / epochs
    top1 = 60 + 30 * (1 - (1 - share) ** 2) + gain * share + draw.gauss(0, 0.8)
    return {
        "epoch": epoch,
        "step": 6 * epoch,
        "lr": 0.03 * (1 - share),
        "train_loss": 2 - share + draw.gauss(0, 0.03),
        "train_top1": None if epoch == 1 else top1 + 2,
        "train_top1_share": 1.0,
        "train_seconds": 0.5,
        "images_per_second": 900.0,
        "val_top1": top1,
        "val_loss": 2.2 - share,
        "isda/lambda": share / 2,
    }


def _measures(gain: float, draw: random.Random) -> Measures:
    return Measures(90 + gain + draw.gauss(0, 0.4), None, 0.31 - gain / 100, 4.0 - gain / 4)
