"""Transforms against per-image references, the loader's counted randomness, and image folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from augury.config import DataConfig
from augury.data.datasets import ImageSet, load_dataset
from augury.data.memory import MemoryLoader
from augury.data.transforms import Crop, Cutout, Flip, Pipeline, parse
from augury.distributed import Ranks
from augury.errors import UsageError

CPU = torch.device("cpu")
SHAPES = [(1, 1, 8, 8), (5, 3, 7, 4), (64, 3, 32, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [1, 3])
def test_crop(shape: tuple[int, ...], padding: int) -> None:
    images, uniforms = torch.randint(0, 256, shape, dtype=torch.uint8), torch.rand(shape[0], 2)
    found = Crop(padding)(images, uniforms)
    for i, image in enumerate(images.numpy()):
        padded = np.pad(image, [(0, 0), (padding, padding), (padding, padding)])
        top, left = (int(u * (2 * padding + 1)) for u in uniforms[i].tolist())
        assert np.array_equal(found[i].numpy(), padded[:, top : top + shape[2], left : left + shape[3]])


@pytest.mark.parametrize("shape", SHAPES)
def test_flip(shape: tuple[int, ...]) -> None:
    images, uniforms = torch.randint(0, 256, shape, dtype=torch.uint8), torch.rand(shape[0], 1)
    found = Flip()(images, uniforms)
    for i, image in enumerate(images.numpy()):
        assert np.array_equal(found[i].numpy(), image[:, :, ::-1] if uniforms[i] < 0.5 else image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout(shape: tuple[int, ...], size: int) -> None:
    images, uniforms = torch.randn(shape), torch.rand(shape[0], 2)
    expected = images.clone()
    for i, (u, v) in enumerate(uniforms.tolist()):
        top, left = int(u * shape[2]) - size // 2, int(v * shape[3]) - size // 2
        expected[i, :, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    assert torch.equal(Cutout(size)(images, uniforms), expected)


def test_every_place_of_a_crop_is_reached_alike() -> None:
    places = (torch.rand(9000, 2) * 9).long()
    counts = torch.bincount(places[:, 0], minlength=9)
    assert counts.min() > 850
    # The largest float32 below 1 must not lead outside.
    assert Crop(4)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.full((1, 2), 1 - 2**-24)).shape == (1, 1, 8, 8)


def test_a_pipeline_normalises_between_its_halves() -> None:
    mean, std = [0.2, 0.5, 0.7], [0.1, 0.2, 0.3]
    images, uniforms = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8), torch.rand(6, 5)
    found = Pipeline(parse(["crop:2", "flip", "cutout:3"], "data.base"), mean, std, CPU)(images, uniforms)
    moved = Flip()(Crop(2)(images, uniforms[:, :2]), uniforms[:, 2:3]).double() / 255
    normal = (moved - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(found.double(), Cutout(3)(normal, uniforms[:, 3:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("words", "told"), [(["crop"], "crop:N"), (["flip:2"], "flip alone"), (["crop:x"], "crop:N")])
def test_wrong_words(words: list[str], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        parse(words, "data.base")


def test_words_out_of_order() -> None:
    with pytest.raises(UsageError, match="must stand before cutout"):
        parse(["cutout:3", "flip"], "data.base")


def loader(images: ImageSet, *, shares: dict[str, float] | None = None, views: int = 1, size: int = 8) -> MemoryLoader:
    pipelines = {
        name: Pipeline(parse(words, name), [0.5], [0.5], CPU)
        for name, words in {"base": ["crop:1"], "augmented": ["crop:1", "cutout:2"]}.items()
    }
    shares = shares or {"base": 0.0, "augmented": 1.0}
    return MemoryLoader(
        images, pipelines, shares=shares, views=views, batch_size=size, seed=4, device=CPU, ranks=Ranks()
    )


@pytest.fixture
def images() -> ImageSet:
    return ImageSet(torch.randint(0, 256, (43, 1, 6, 6), dtype=torch.uint8), torch.randint(0, 3, (43,)))


def made(source: MemoryLoader, epoch: int = 0, view: int = 0) -> dict[int, Tensor]:
    found = {}
    for batch in source.epoch(epoch):
        part = batch.view(view)
        found |= dict(zip(part.indices.tolist(), part.images, strict=True))
    return found


def test_an_epoch_takes_each_image_at_most_once(images: ImageSet) -> None:
    batches = list(loader(images).epoch(0))
    indices = torch.cat([batch.indices for batch in batches])
    assert len(batches) == 5
    assert len(indices.unique()) == len(indices) == 40
    assert torch.equal(torch.cat([b.labels[:, 0] for b in batches]), images.labels[indices])
    assert not torch.equal(indices, torch.cat([batch.indices for batch in loader(images).epoch(1)]))


def test_a_row_depends_on_seed_epoch_view_and_image_alone(images: ImageSet) -> None:
    alone, beside = made(loader(images)), made(loader(images, views=2, size=5))
    common = alone.keys() & beside.keys()
    assert len(common) > 30
    assert all(torch.equal(alone[i], beside[i]) for i in common)
    other_epoch, other_view = made(loader(images), epoch=1), made(loader(images, views=2), view=1)
    assert any(not torch.equal(alone[i], other_epoch[i]) for i in alone.keys() & other_epoch.keys())
    assert any(not torch.equal(alone[i], other_view[i]) for i in alone.keys() & other_view.keys())


def test_an_epoch_can_be_entered_anywhere(images: ImageSet) -> None:
    whole, rest = list(loader(images, views=2).epoch(3)), list(loader(images, views=2).epoch(3, start=2))
    assert len(rest) == 3
    for one, other in zip(whole[2:], rest, strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("views", [1, 2])
def test_pipelines_make_exactly_their_share(images: ImageSet, share: float, views: int) -> None:
    for batch in loader(images, shares={"base": share, "augmented": 1 - share}, views=views, size=7).epoch(0):
        assert int(batch.made_by("base").sum()) == round(share * 7 * views)
        blank = (batch.images == 0).flatten(1).any(1)
        assert not blank[batch.made_by("base")].any(), "pipeline `base` has no cutout"
        assert blank[~batch.made_by("base")].all()


def test_one_pass_is_every_image_in_order(images: ImageSet) -> None:
    batches = list(loader(images).one_pass("base"))
    assert torch.equal(torch.cat([b.indices for b in batches]), torch.arange(43))
    assert all(b.made_by("base").all() for b in batches)


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (10, 8), level: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, level if mode in ("L", "P") else (level, 0, 0)).save(path)


@pytest.mark.parametrize("splits", [(), ("train",), ("train", "val"), ("train", "test"), ("train", "val", "test")])
def test_the_layouts_of_image_folders(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for number, split in enumerate(splits or ("",)):
        for name in ("b", "a"):
            for i in range(20 + number):
                picture(tmp_path / split / name / "deeper" / f"{i}.png", level=50 * number + i)
    data = load_dataset(DataConfig(dataset=str(tmp_path)), 32)
    assert data.classes == ["a", "b"]
    assert data.image_size == (3, 8, 10)
    held = 20 + splits.index("val") if "val" in splits else None
    tested = 20 + splits.index("test") if "test" in splits else None
    assert held is None or len(data.val) == 2 * held
    assert (data.test is None) == (splits in [("train",), ("train", "val")])
    assert tested is None or (data.test is not None and len(data.test) == 2 * tested)
    if not splits:
        assert data.test is not None
        assert (len(data.train), len(data.val), len(data.test)) == (25, 3, 12)


def test_images_of_many_kinds_become_rgb_of_one_size(tmp_path: Path) -> None:
    for i in range(10):
        picture(tmp_path / "a" / f"{i}.png", mode=("L", "P", "RGB", "CMYK")[i % 3], size=(9 + i, 7))
        picture(tmp_path / "b" / f"{i}.jpg", size=(12, 20 + i))
    data = load_dataset(DataConfig(dataset=str(tmp_path)), 16)
    assert data.image_size == (3, 16, 16)
    assert load_dataset(DataConfig(dataset=str(tmp_path), image_size=5), 16).image_size == (3, 5, 5)


def test_a_turned_photograph_is_turned_upright(tmp_path: Path) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn it a quarter clockwise to see it upright.
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(10):
            upright.rotate(90).save(tmp_path / name / f"{i}.png", exif=exif)
    data = load_dataset(DataConfig(dataset=str(tmp_path)), 8)
    assert np.array_equal(data.train.images[0].permute(1, 2, 0).numpy(), np.asarray(upright))


def test_digits_are_split_by_a_seed_of_their_own() -> None:
    one, two = load_dataset(DataConfig(), 32), load_dataset(DataConfig(split_seed=1), 32)
    assert one.test is not None
    assert len(one.train) + len(one.val) + len(one.test) == 1797
    assert one.image_size == (1, 8, 8)
    assert not torch.equal(one.train.labels, two.train.labels)
    shares = torch.bincount(one.test.labels) / len(one.test)
    assert (shares - 0.1).abs().max() < 0.01
    few = load_dataset(DataConfig(images_per_class=7), 32)
    assert torch.bincount(few.train.labels).tolist() == [7] * 10
    pixels = one.train.images.double() / 255
    assert (one.mean[0], one.std[0]) == pytest.approx((float(pixels.mean()), float(pixels.std(correction=0))))
