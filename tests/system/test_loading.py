"""Whole runs on loaded images: the number of workers changes nothing, and real data train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from augury_train.config import read_config
from augury_train.training.result import Result
from augury_train.training.trainer import train

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def run(folder: Path, **sections: dict[str, Any]) -> tuple[Result, list[dict[str, Any]]]:
    result = train(read_config({"device": "cpu", **sections}), folder)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["train_seconds"], row["images_per_second"]
    return result, rows


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    found = []
    for workers in (0, 1, 4):
        data = {
            "loader": "stream",
            "workers": workers,
            "images_per_class": 12,
            "augmented": "randaugment:n=1,m=5 crop:1 color_jitter:0.2 cutout:2 random_erasing:0.5",
        }
        optim = {"epochs": 2, "batch_size": 24, "lr": 0.05}
        methods = [{"name": "agmax"}, {"name": "dcutmix"}]
        found.append(run(tmp_path / str(workers), data=data, optim=optim, methods=methods)[1])
    assert len(found[0]) == 2
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_in_two_epochs(tmp_path: Path) -> None:
    data = {"dataset": f"fashion_mnist:{FASHION_MNIST}"}
    optim = {"epochs": 2, "batch_size": 128, "lr": 0.1}
    result, _ = run(tmp_path / "run", data=data, optim=optim)
    assert result.last["test"].top1 > 88
