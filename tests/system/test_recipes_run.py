"""The recipes of published runs can be run: each makes a plan, and takes steps, on images of its data set's kind."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
import timm
from tests.system.published import PUBLISHED

from augury_train import backbones
from augury_train.config import ModelConfig, RunConfig, assign, read_config, read_recipe
from augury_train.data.source import ArraySource, Collection
from augury_train.recipes import Recipe
from augury_train.training import plan
from augury_train.training.plan import make_plan
from augury_train.training.rehearsal import rehearse

STEPPED = [
    "agmax/cifar10-wrn40_2-cutout-autoaugment",
    "dcutmix/cifar100-pyramidnet110",
    "isda/cifar10-resnet32",
    "resmooth/cifar10-resnet18-randaugment",
]
"""The smallest of each method."""


@functools.cache
def _stand_in(dataset: str) -> Collection:
    """Black images of a data set's size, as many classes, and what is known of it."""
    classes, size = {"imagenet": (1000, 224), "cifar100": (100, 32)}.get(dataset, (10, 32))
    labels = np.arange(1000, dtype=np.int64) % classes
    images = np.broadcast_to(np.zeros((), dtype=np.uint8), (1000, 3, size, size))
    splits = {name: ArraySource(images, labels) for name in ("train", "val" if dataset == "imagenet" else "test")}
    names = [str(label) for label in range(classes)]
    if dataset == "imagenet":
        return Collection(splits, names)
    return Collection(splits, names, transforms=["crop:4", "flip"], mean=[0.5] * 3, std=[0.25] * 3)


@pytest.fixture
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data set is opened, and what a network is like is found out once."""
    monkeypatch.setattr(plan, "open_dataset", lambda data: _stand_in(data.dataset))
    monkeypatch.setattr(backbones, "inspect_model", lambda model, *facts: _inspect(model.model_dump_json(), *facts))


_inspect_model = backbones.inspect_model


@functools.cache
def _inspect(model: str, classes: int, size: tuple[int, int, int]) -> backbones.Facts:
    return _inspect_model(ModelConfig(**json.loads(model)), classes, size)


def config_of(recipe: Recipe, **changes: Any) -> RunConfig:
    """A recipe's settings with some changed; "data.image_size" is written data__image_size."""
    values = read_recipe(recipe.path)
    for key, value in changes.items():
        assign(values, key.replace("__", "."), value)
    return read_config(values)


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("name", PUBLISHED)
def test_each_makes_a_plan(name: str) -> None:
    made = make_plan(config_of(PUBLISHED[name]))
    assert [chosen.name for chosen in made.chosen] == list(PUBLISHED[name].methods)
    assert made.config.data.protocol == "paper"
    assert made.notes == ()
    assert len(made.data.splits.train) == 1000
    form = made.data.format
    test = form.test or form
    seen = (form.side, test.side, test.kept)
    at_256 = "regnet" in name or "efficientnet" in name
    on_imagenet = (224, 256, 288) if at_256 else (224, 224, 256)
    assert seen == (on_imagenet if PUBLISHED[name].dataset == "imagenet" else (32, 32, 32))


def assert_takes_steps(name: str) -> None:
    """Build all, with its stages, and take two steps of two images."""
    recipe = PUBLISHED[name]
    changes: dict[str, Any] = {"optim__batch_size": 2, "device": "cpu", "train__trackers": []}
    if recipe.dataset == "imagenet":
        # For the time that it takes.
        changes |= {
            f"data__{key}": 64 for key in ("image_size", "test_size") if key in read_recipe(recipe.path)["data"]
        }
    done = rehearse(config_of(recipe, **changes))
    assert done.methods == list(recipe.methods)
    assert done.batch_size == 2
    assert done.step_seconds > 0


@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("name", STEPPED)
def test_one_of_each_method_takes_steps(name: str) -> None:
    assert_takes_steps(name)


@pytest.mark.slow
@pytest.mark.usefixtures("_stand_ins")
@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - set(STEPPED)))
def test_all_take_steps(name: str) -> None:
    assert_takes_steps(name)


def test_no_recipe_waits_for_a_network() -> None:
    assert {recipe.model for recipe in PUBLISHED.values()} <= set(timm.list_models())
