"""A dry run builds all of a run, and touches neither the disk nor the images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import small

import augury
from augury.choice import Chosen
from augury.errors import UsageError
from augury_train.config import RunConfig
from augury_train.data.source import ArraySource
from augury_train.data.view import DataSet
from augury_train.training import built, rehearsal, trainer
from augury_train.training.plan import make_plan
from augury_train.training.rehearsal import Rehearsal, preview, rehearse


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, and images that must not be read."""
    monkeypatch.chdir(tmp_path)
    of_noise = rehearsal._on_noise
    allowed: list[int] = []
    pixels, read = DataSet.pixels, ArraySource.read

    def on_noise(plan: Any) -> Any:
        noisy = of_noise(plan)
        allowed.append(id(noisy.data.splits.train.source))
        return noisy

    def guarded_pixels(self: DataSet, split: Any, *more: Any) -> Any:
        assert id(split.source) in allowed, "an image was read"
        return pixels(self, split, *more)

    def guarded_read(self: ArraySource, index: int) -> Any:
        assert id(self) in allowed, "an image was read"
        return read(self, index)

    monkeypatch.setattr(rehearsal, "_on_noise", on_noise)
    # Workers that draw noise would be timed with the steps.
    monkeypatch.setattr(built, "StreamFeed", lambda *_: pytest.fail("workers were started"))
    monkeypatch.setattr(DataSet, "pixels", guarded_pixels)
    monkeypatch.setattr(ArraySource, "read", guarded_read)
    return tmp_path


def assert_plausible(found: Rehearsal, config: RunConfig) -> None:
    plan = make_plan(config)
    network = plan.build_network()
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.trained_parameters == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert found.methods == [method.name for method in config.methods]
    assert (found.method_parameters > 0) == ("agmax" in found.methods)
    assert (found.device, found.precision) == ("cpu", {"auto": "fp32"}.get(config.train.precision, "bf16"))
    assert found.images["train"] == len(plan.data.splits.train)
    assert set(found.images) >= {"train", "test"}
    assert found.steps_per_epoch == found.images["train"] // config.optim.batch_size
    assert (found.epochs, found.batch_size) == (config.optim.epochs, config.optim.batch_size)
    assert (found.image_size, found.classes, found.loader) == ((1, 8, 8), 10, plan.loader)
    assert found.pipelines == {"base": ["crop:1"], "augmented": ["crop:1", "cutout:3"]}
    assert found.step_seconds > 0
    assert math.isclose(found.epoch_seconds, found.step_seconds * found.steps_per_epoch)
    assert 2**26 < found.peak_bytes < 2**36
    assert found.notes == plan.notes


KINDS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "baseline": ((), {}),
    "isda": (("isda",), {}),
    "dcutmix": (("dcutmix",), {}),
    "agmax": (("agmax",), {}),
    "resmooth": (("resmooth",), {}),
    "all four": (("resmooth", "dcutmix", "isda", "agmax"), {}),
    "stream": ((), {"data": {"loader": "stream"}}),
    "accumulation": (("isda",), {"optim": {"accumulation": 5}}),
    "few images in a batch": (("resmooth", "agmax"), {"optim": {"batch_size": 2}}),
    "one image in a batch": ((), {"optim": {"batch_size": 1}}),
    "average, frozen, bf16": ((), {"train": {"ema": 0.9, "precision": "bf16"}, "model": {"frozen_stages": 2}}),
    "class weights": ((), {"train": {"class_weights": "balanced", "label_smoothing": 0.1}}),
    "plateau": (("resmooth",), {"schedule": {"name": "plateau", "patience": 1}, "train": {"patience": 1}}),
    "multistep": ((), {"schedule": {"name": "multistep", "milestones": [1]}, "optim": {"epochs": 9}}),
    "papers": ((), {"data": {"protocol": "paper"}}),
}


@pytest.mark.parametrize(("methods", "sections"), KINDS.values(), ids=KINDS)
def test_a_rehearsal_builds_all_and_writes_and_reads_nothing(
    methods: tuple[Any, ...], sections: dict[str, Any], guarded: Path
) -> None:
    sections = {**sections, "data": {"base": "crop:1", **sections.get("data", {})}}
    config = small(*methods, **sections)
    found = rehearse(config)
    assert_plausible(found, config)
    assert list(guarded.iterdir()) == []


def test_two_steps_are_taken_however_long_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    step = rehearsal._Clock.step
    monkeypatch.setattr(rehearsal._Clock, "step", lambda self, images: (taken.append(images), step(self, images))[1])
    rehearse(small(optim={"epochs": 500}))
    assert taken == [25, 25]


def test_a_rehearsal_refuses_what_a_run_refuses() -> None:
    with pytest.raises(UsageError, match=r"optim\.accumulation=3 must divide"):
        rehearse(small(optim={"accumulation": 3}))


def test_a_preview_shows_what_a_run_draws_of_its_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    picture = built.Built.picture

    def spying(self: Any, batch: Any, *more: Any) -> Any:
        seen.append([part.clone() for part in (batch.images, batch.labels, batch.shares, batch.smoothing)])
        return picture(self, batch, *more)

    monkeypatch.setattr(built.Built, "picture", spying)
    config = small("resmooth", "dcutmix", train={"label_smoothing": 0.1}, optim={"epochs": 1})
    figures = preview(config, columns=4)
    assert list(figures) == ["batch", "resmooth/losses", "resmooth/extremes"]
    figures["batch"].savefig(tmp_path / "preview.png")
    assert (tmp_path / "preview.png").stat().st_size > 1000
    trainer.train(config, tmp_path / "run")
    assert len(seen) == 2
    for shown, drawn in zip(*seen, strict=True):
        assert shown.equal(drawn)


class Sometimes(augury.Method):
    """Leaves nothing of the first batches."""

    class Options(augury.Options):
        empty: int

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.seen = 0

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        self.seen += 1
        batch.take(torch.arange(0 if self.seen <= self.options.empty else 5))


@pytest.mark.parametrize("empty", [0, 3])
def test_a_preview_shows_the_first_batch_with_images(empty: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_plans(monkeypatch, Chosen("sometimes", Sometimes, Sometimes.Options(empty=empty)))
    assert list(preview(small())) == ["batch"]


def test_a_preview_of_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    add_to_plans(monkeypatch, Chosen("sometimes", Sometimes, Sometimes.Options(empty=99)))
    with pytest.raises(UsageError, match="preview: the methods leave no image of any batch"):
        preview(small())


def add_to_plans(monkeypatch: pytest.MonkeyPatch, chosen: Chosen) -> None:
    """Let previews plan with a method that is in no register."""
    plan = rehearsal.make_plan

    def with_it(*arguments: Any) -> Any:
        planned = plan(*arguments)
        planned.chosen.append(chosen)
        return planned

    monkeypatch.setattr(rehearsal, "make_plan", with_it)
