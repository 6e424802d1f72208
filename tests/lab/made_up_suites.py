"""Suites of runs that never ran: their results and metrics, written as training writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from augury_lab.experiment.table import Comparison, summarise
from augury_train.measures import Measures
from augury_train.training.result import Costs, Result

IMAGES = 10_000
TIMES = {"train_seconds": 2.0, "images_per_second": 500.0}
"""What every row of an epoch has."""


def result(folder: Path | str, top1: float, **changes: Any) -> Result:
    """A run's result; its last epoch is half a point worse than the best, and validation one point better than test."""
    measures = {"top5": 99.0, "nll": 0.3, "ece": 2.0} | {
        k: changes.pop(k) for k in ("top5", "nll", "ece") if k in changes
    }
    costs = Costs(60.0, 0.0, 1000.0, 500_000, 0, 2**30)
    best = {"val": Measures(top1 + 1, **measures), "test": Measures(top1, **measures)}
    last = {"val": Measures(top1 + 0.5, **measures), "test": Measures(top1 - 0.5, **measures)}
    return Result(
        **{
            **{"folder": str(folder), "epochs": 8, "chosen_on": "val", "weights": "raw", "best_epoch": 7},
            **{"best": best, "last": last, "costs": costs},
            **changes,
        }
    )


def suite(folder: Path, scores: Mapping[str, Sequence[float]], epochs: int = 8, **how: Any) -> Comparison:
    """The comparison of runs with the given test accuracies for each seed, the first composition being the base; each
    run has a `metrics.jsonl` of `epochs` rows that ends at its validation accuracy."""
    draws = np.random.default_rng(0)
    runs: dict[str, list[Result]] = {}
    for name, values in scores.items():
        for seed, top1 in enumerate(values):
            run = folder / name.replace("/", "_") / f"seed-{seed}"
            run.mkdir(parents=True)
            ramp = top1 + 1 - np.arange(epochs - 1, -1, -1) + draws.normal(0, 0.1, epochs) * (epochs > 1)
            rows = [TIMES | {"epoch": number + 1, "val_top1": value} for number, value in enumerate(ramp.tolist())]
            (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            runs.setdefault(name, []).append(result(run, top1))
    base, *_ = scores
    seeds = range(len(scores[base]))
    return summarise(runs, base, how.get("split", "test"), how.get("equal", "epochs"), seeds, IMAGES, folder)
