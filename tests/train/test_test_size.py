"""Validation and test images of another size than the training images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tests.train.small_runs import small

from augury.errors import UsageError
from augury_train.config import DataConfig, RunConfig
from augury_train.data.geometry import centre_square
from augury_train.data.memory import MemoryFeed
from augury_train.data.source import ArraySource, Collection
from augury_train.data.splits import Split, Splits
from augury_train.data.stream import StreamFeed
from augury_train.data.view import DataSet, ImageFormat, choose_format, pixels_of
from augury_train.training.facts import begun
from augury_train.training.plan import make_plan
from augury_train.training.rehearsal import rehearse
from augury_train.training.trainer import Trainer, resume, train

CPU = torch.device("cpu")
MODEL = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.5,) * 3,
    "std": (0.25,) * 3,
}


def collection(height: int = 40, width: int = 50) -> Collection:
    images = np.random.default_rng(0).integers(0, 256, (12, 3, height, width), dtype=np.uint8)
    return Collection({"train": ArraySource(images, np.arange(12) % 2)}, ["a", "b"])


def chosen(**settings: object) -> ImageFormat:
    return choose_format(DataConfig.model_validate(settings), collection(), MODEL, pretrained=False)


def test_test_images_have_their_own_side_and_the_same_crop() -> None:
    form = chosen(test_size=256)
    assert (form.side, form.kept) == (224, 256)
    assert form.test == ImageFormat(3, 256, 292, "bicubic", (0.5,) * 3, (0.25,) * 3)
    smaller = chosen(image_size=64, test_size=32, crop_pct=0.5)
    assert smaller.test is not None
    assert (smaller.kept, smaller.test.kept) == (128, 64)


@pytest.mark.parametrize("settings", [{}, {"test_size": 224}, {"image_size": 96, "test_size": 96}])
def test_without_another_size_nothing_is_told_apart(settings: dict[str, int]) -> None:
    assert chosen(**settings).test is None


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_both_loaders_show_held_out_images_at_their_size(kind: str) -> None:
    source = collection().splits["train"]
    form = chosen(image_size=16, test_size=20, crop_pct=0.8)
    train, val, test = (Split(source, torch.arange(i, i + 4)) for i in (0, 4, 8))
    data = DataSet(Splits(train, val, test), ["a", "b"], form, [])
    assert data.bytes == 3 * (4 * 20**2 + 8 * 25**2)
    feed = MemoryFeed(data, CPU) if kind == "memory" else StreamFeed(data, CPU, 0)
    for split in (val, test):
        images, _ = next(iter(feed.held_out(split)))
        squares = [centre_square(source.read(int(row)), 25, "bicubic") for row in split.rows]
        assert torch.equal(images, torch.from_numpy(np.stack([pixels_of(square) for square in squares])))
    assert feed.originals(torch.arange(2)).shape == (2, 3, 20, 20)
    assert data.pixels(train).shape == (4, 3, 20, 20)


def folder(root: Path) -> Path:
    drawn = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = drawn.integers(0, 256, (30, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{number}.png")
    return root


def config(tmp_path: Path, **data: object) -> RunConfig:
    settings = {"dataset": str(folder(tmp_path / "images")), "image_size": 16, "test_size": 24, "augmented": "flip"}
    return small(
        data={**settings, "images_per_class": None, "val_fraction": 0.25, **data},
        model={"name": "test_resnet"},
        optim={"epochs": 1, "batch_size": 6},
    )


@pytest.mark.parametrize("loader", ["memory", "stream"])
def test_a_run_is_judged_at_the_test_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    settings = config(tmp_path, loader=loader, workers=0)
    trainer = Trainer(make_plan(settings))
    seen: set[tuple[bool, int]] = set()
    trainer.network.register_forward_pre_hook(lambda net, inputs: seen.add((net.training, inputs[0].shape[-1])))
    trainer.run(tmp_path / "run")
    assert seen == {(True, 16), (False, 24)}
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (facts["image_size"], facts["test_size"]) == (16, 24)
    assert begun(tmp_path / "run").format == trainer.data.format
    with safe_open(str(tmp_path / "run" / "best.safetensors"), "pt") as file:
        said = file.metadata()
    assert (said["input_size"], said["test_input_size"]) == ("[3, 16, 16]", "[3, 24, 24]")


def test_a_run_that_goes_on_keeps_its_test_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    settings = config(tmp_path)
    before = train(settings, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert resume(tmp_path / "run").last["test"] == before.last["test"]
    # A folder of before there was this setting.
    said = json.loads((tmp_path / "run" / "data.json").read_text())
    old = {key: value for key, value in said.items() if not key.startswith("test_")}
    (tmp_path / "run" / "data.json").write_text(json.dumps(old))
    assert begun(tmp_path / "run").format.test is None


def test_a_dry_run_takes_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    assert rehearse(config(tmp_path)).image_size == (3, 16, 16)


def test_networks_of_one_size_refuse_another_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    settings = config(tmp_path, image_size=32, test_size=48).model_copy(
        update={"model": small(model={"name": "test_vit"}).model}
    )
    with pytest.raises(UsageError) as caught:
        make_plan(settings)
    assert str(caught.value) == (
        "model `test_vit` takes images of one size, here 32; data.test_size=48 is another. "
        "Leave data.test_size out, or choose another model."
    )
    kwargs = small(model={"name": "test_vit", "kwargs": {"dynamic_img_size": True}}).model
    make_plan(settings.model_copy(update={"model": kwargs}))
