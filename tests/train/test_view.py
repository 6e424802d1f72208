"""How images enter the network: size, crop and normalisation, and a data set decoded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from augury.errors import UsageError
from augury_train.backbones import data_config
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.geometry import centre_square
from augury_train.data.source import ArraySource, Collection
from augury_train.data.splits import Split, Splits
from augury_train.data.view import CHUNK, DataSet, ImageFormat, choose_format, crop_share, decode, usual_transforms

MODEL: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))


def arrays(count: int, channels: int = 3, height: int = 32, width: int = 32) -> ArraySource:
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (count, channels, height, width), dtype=np.uint8)
    return ArraySource(images, drawn.integers(0, 2, count))


def named(channels: int = 3) -> Collection:
    """A data set that is known for a size and a normalisation."""
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    return Collection({"train": arrays(4, channels)}, ["a", "b"], ["flip"], mean[:channels], std[:channels])


def own(channels: int = 3) -> Collection:
    """Somebody's images."""
    return Collection({"train": arrays(4, channels, 300, 400)}, ["a", "b"])


def chosen(
    collection: Collection, pretrained: bool = False, model: dict[str, Any] | None = None, **settings: Any
) -> ImageFormat:
    return choose_format(DataConfig(**settings), collection, MODEL | (model or {}), pretrained)


def test_a_named_data_set_is_what_it_is_known_for_with_fresh_weights() -> None:
    assert chosen(named()) == ImageFormat(3, 32, 32, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_trained_weights_get_what_they_were_trained_on() -> None:
    expected = ImageFormat(3, 224, 256, "bicubic", MODEL["mean"], MODEL["std"])
    assert chosen(named(), pretrained=True) == expected
    assert chosen(own(), pretrained=True) == expected


def test_somebodys_images_get_what_the_model_was_made_for() -> None:
    assert chosen(own()) == ImageFormat(3, 224, 256, "bicubic", MODEL["mean"], MODEL["std"])
    assert chosen(own(), model={"interpolation": "bilinear"}).interpolation == "bilinear"
    assert chosen(own(), model={"interpolation": "random"}).interpolation == "bicubic"


@pytest.mark.parametrize("collection", [named(), own()])
@pytest.mark.parametrize("pretrained", [False, True])
def test_settings_come_first(collection: Collection, pretrained: bool) -> None:
    settings = {
        "image_size": 96,
        "crop_pct": 0.75,
        "interpolation": "bilinear",
        "mean": [0.5, 0.6, 0.7],
        "std": [0.1, 0.2, 0.3],
    }
    expected = ImageFormat(3, 96, 128, "bilinear", (0.5, 0.6, 0.7), (0.1, 0.2, 0.3))
    assert chosen(collection, pretrained, **settings) == expected
    # Each by itself, the rest as it was.
    whole = chosen(collection, pretrained)
    assert chosen(collection, pretrained, mean=[0.5, 0.6, 0.7]) == ImageFormat(
        3, whole.side, whole.kept, whole.interpolation, (0.5, 0.6, 0.7), whole.std
    )
    assert chosen(collection, pretrained, image_size=64).kept == int(64 * whole.kept / whole.side)


@pytest.mark.parametrize("side", [8, 32, 33, 224, 299])
@pytest.mark.parametrize("crop_pct", [0.1, 0.875, 0.9, 0.95, 1.0])
def test_the_square_that_is_kept_is_timms(side: int, crop_pct: float) -> None:
    found = chosen(own(), image_size=side, crop_pct=crop_pct)
    assert (found.side, found.kept) == (side, math.floor(side / crop_pct))
    assert found.frame.size == (side, side)
    assert found.size == (3, side, side)


def test_grey_images_get_the_mean_of_a_models_colours() -> None:
    found = chosen(own(1))
    assert found.channels == found.size[0] == 1
    assert found.mean == pytest.approx((0.449,))
    assert found.std == pytest.approx((0.226,))
    assert chosen(named(1)).mean == (0.1,)
    assert chosen(named(1), mean=[0.3], std=[0.2]).std == (0.2,)


def test_a_normalisation_for_other_channels_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        chosen(own(1), mean=[0.5, 0.5, 0.5], std=[0.1, 0.1])
    assert str(caught.value) == (
        "config: key `data.mean` must have 1 number(s), one for each channel, got [0.5, 0.5, 0.5].\n"
        "config: key `data.std` must have 1 number(s), one for each channel, got [0.1, 0.1]."
    )
    with pytest.raises(UsageError, match=r"`data.mean` must have 3 number"):
        chosen(own(), mean=[0.5])


def test_the_models_that_come_with_timm_say_what_they_want() -> None:
    found = choose_format(DataConfig(), own(), data_config("resnet18"), pretrained=True)
    assert (found.channels, found.side) == (3, 224)
    assert found.kept > 224
    assert choose_format(DataConfig(), named(), data_config("resnet20_cifar"), pretrained=False).side == 32


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (4, ["crop:1", "flip"]),
        (28, ["crop:3", "flip"]),
        (32, ["crop:4", "flip"]),
        (64, ["crop:8", "flip"]),
        (65, ["random_resized_crop:0.35", "flip"]),
        (224, ["random_resized_crop:0.35", "flip"]),
    ],
)
def test_the_usual_transforms_follow_the_size(side: int, expected: list[str]) -> None:
    assert usual_transforms(own(), side) == expected
    assert usual_transforms(named(), side) == ["flip"]
    assert usual_transforms(Collection({}, [], transforms=[]), side) == []


# Decoding.


def photographs(root: Path, count: int = 70) -> Split:
    """JPEGs of many shapes, those of class `b` upright ones, in an order of their own."""
    drawn = np.random.default_rng(3)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (20 + number, 30) if number % 2 == 0 else (11, 30 + number)
        small = Image.fromarray(drawn.integers(0, 256, (3, 4, 3), dtype=np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    source = open_dataset(DataConfig(dataset=str(root))).splits["all"]
    return Split(source, torch.from_numpy(drawn.permutation(count)))


def squares(split: Split, form: ImageFormat) -> Tensor:
    """One image after the other."""
    made = [centre_square(split.source.read(row), form.kept, form.interpolation) for row in split.rows.tolist()]
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in made]))
    return stacked[:, None] if form.channels == 1 else stacked.permute(0, 3, 1, 2)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("kept", [8, 24])
def test_decoding_keeps_the_centre_square_of_each_image(tmp_path: Path, interpolation: str, kept: int) -> None:
    split = photographs(tmp_path)
    form = ImageFormat(3, 8, kept, interpolation, (0.5,) * 3, (0.5,) * 3)
    told: list[int] = []
    found = decode(split, form, told.append)
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert torch.equal(found, squares(split, form))
    assert (sum(told), max(told)) == (70, CHUNK)
    assert torch.equal(decode(split, form), found)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (5, 12)])
def test_arrays_are_taken_as_they_are_where_they_fit(channels: int, height: int, width: int) -> None:
    source = arrays(20, channels, height, width)
    split = Split(source, torch.tensor([7, 7, 3, 19]))
    form = ImageFormat(channels, 8, 8, "bilinear", (0.5,) * channels, (0.5,) * channels)
    told: list[int] = []
    found = decode(split, form, told.append)
    assert sum(told) == 4, "a bar that counts all images must fill"
    assert torch.equal(found, squares(split, form))
    found.fill_(0)
    assert source.images[7].any(), "the source's own images must stay as they are"


def data(train: Split, form: ImageFormat) -> DataSet:
    return DataSet(Splits(train, None, train.take(torch.arange(5))), ["a", "b"], form, [])


def test_a_data_set_counts_and_decodes_its_images_once() -> None:
    form = ImageFormat(3, 16, 24, "bilinear", (0.5,) * 3, (0.5,) * 3)
    images = data(Split(arrays(20), torch.arange(20)), form)
    assert images.images == 25
    assert images.bytes == 25 * 3 * 24 * 24
    first = images.pixels(images.splits.train)
    assert images.pixels(images.splits.train) is first
    assert first.shape == (20, 3, 24, 24)


def test_splits_that_come_and_go_are_not_taken_for_each_other() -> None:
    form = ImageFormat(1, 4, 4, "bilinear", (0.5,), (0.5,))
    source = ArraySource(
        np.arange(50, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3), np.zeros(50, int)
    )
    whole = Split(source, torch.arange(50))
    images = data(whole, form)
    for number in range(50):
        assert int(images.pixels(whole.take(torch.tensor([number])))[0, 0, 0, 0]) == number


def test_the_share_that_is_told_of_a_crop_keeps_just_that_square_again() -> None:
    for side in (*range(1, 400, 3), 160, 224, 384):
        for kept in range(side, side + 250, 1 if side < 32 else 7):
            share = crop_share(side, kept)
            # timm's way, and ours.
            assert math.floor(side / share) == int(side / share) == kept
            assert share == pytest.approx(side / kept, rel=1e-12)
