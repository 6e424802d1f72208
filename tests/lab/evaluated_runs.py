"""Finished runs on few digits, for the tests of what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.train.small_runs import small

from augury_train.training.result import Result
from augury_train.training.trainer import train


def finished(folder: Path, **sections: dict[str, Any]) -> Result:
    """Train on 25 of each class for four epochs; `sections` change the settings."""
    data = {"images_per_class": 25, **sections.pop("data", {})}
    optim = {"epochs": 4, **sections.pop("optim", {})}
    return train(small(data=data, optim=optim, **sections), folder)
