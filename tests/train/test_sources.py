"""What the name of a data set stands for, where data sets are kept, and images made from noise."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from PIL import Image

from augury.errors import UsageError
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.root import data_root
from augury_train.data.source import ArraySource, Collection
from augury_train.data.synthetic import open_synthetic


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))


def tree(root: Path) -> Path:
    for label, kind in enumerate(("cat", "dog")):
        (root / kind).mkdir(parents=True)
        Image.new("RGB", (4, 3), (label, 0, 0)).save(root / kind / "0.png")
    return root


def opened(name: str, skip_bad: bool = False) -> Collection:
    return open_dataset(DataConfig(dataset=name, skip_bad_images=skip_bad))


def test_data_root_is_the_variable_else_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_root() == tmp_path / "root"
    monkeypatch.setenv("AUGURY_DATA", "~/here")
    assert data_root() == Path.home() / "here"
    monkeypatch.setenv("AUGURY_DATA", "")
    assert data_root() == Path(platformdirs.user_cache_dir("augury", appauthor=False)) / "data"
    assert not (tmp_path / "root").exists()


def test_a_name_is_a_known_one_before_it_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "digits")
    assert len(opened("digits").classes) == 10
    assert opened("./digits").classes == ["cat", "dog"]


def test_folders_are_found_here_and_below_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "root" / "pets")
    assert opened("pets").splits["all"].name(0) == str(tmp_path / "root" / "pets" / "cat" / "0.png")
    for split in ("train", "val"):
        tree(tmp_path / "root" / "imagenet" / split)
    assert list(opened("imagenet").splits) == ["train", "val"]
    tree(tmp_path / "here" / "pets")
    monkeypatch.chdir(tmp_path / "here")
    assert opened("pets").splits["all"].name(0) == str(tmp_path / "here" / "pets" / "cat" / "0.png")


def test_tars_and_folders_of_tars_are_readers(tmp_path: Path) -> None:
    data = tree(tmp_path / "pets")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "all.tar", "w") as tar:
        tar.add(data, arcname="pets")
    assert opened(str(tmp_path / "tars" / "all.tar")).classes == ["cat", "dog"]
    assert opened(str(tmp_path / "tars")).classes == ["cat", "dog"]
    # A folder of images with a stray tar beside the classes is still one.
    (data / "backup.tar").write_bytes((tmp_path / "tars" / "all.tar").read_bytes())
    assert opened(str(data)).splits["all"].name(0) == str(data / "cat" / "0.png")


def test_skipping_is_passed_on(tmp_path: Path) -> None:
    data = tree(tmp_path / "pets")
    (data / "cat" / "bad.png").write_bytes(b"")
    with pytest.raises(UsageError, match="not a readable image"):
        opened(str(data))
    assert len(opened(str(data), skip_bad=True).skipped) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar11", r"unknown data set `cifar11`\. Known: .*Did you mean `cifar10`\? Or give a folder"),
        ("", "unknown data set ``"),
        ("synthetic", "Did you mean `synthetic:`"),
        ("digits:here", "digits:here: only fashion_mnist takes a folder"),
        (
            "imagenet",
            r"`imagenet` is not here and cannot be downloaded: .*/root/imagenet must hold train/ and val/, each ",
        ),
    ],
)
def test_unknown_names_are_refused_with_what_is_known(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(name)


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(UsageError, match=r"x\.zip: a file, but no \.tar of images"):
        opened(str(tmp_path / "x.zip"))


def arrays(collection: Collection, split: str) -> ArraySource:
    source = collection.splits[split]
    assert isinstance(source, ArraySource)
    return source


def test_synthetic_images_have_the_shape_that_is_asked_for() -> None:
    found = opened("synthetic:classes=3,size=5,channels=1,images=60")
    train, test = arrays(found, "train"), arrays(found, "test")
    assert train.images.shape == (60, 1, 5, 5)
    assert test.images.shape == (12, 1, 5, 5)
    assert train.images.dtype == np.uint8
    assert np.bincount(train.labels).tolist() == [20, 20, 20]
    assert found.classes == ["class 0", "class 1", "class 2"]
    assert found.mean is not None
    assert len(found.mean) == 1
    usual = open_synthetic("synthetic:")
    assert arrays(usual, "train").images.shape == (1000, 3, 32, 32)
    assert len(usual.classes) == 10


def test_synthetic_images_are_the_same_each_time_and_tell_their_class() -> None:
    first, second = (open_synthetic("synthetic:classes=4,images=80") for _ in range(2))
    np.testing.assert_array_equal(arrays(first, "train").images, arrays(second, "train").images)
    assert not np.array_equal(arrays(first, "train").images[:10], arrays(first, "test").images[:10])
    means = {}
    for split in ("train", "test"):
        source = arrays(first, split)
        brightness = source.images.mean(axis=(2, 3))
        means[split] = np.stack([brightness[source.labels == label].mean(axis=0) for label in range(4)])
    # Classes differ by more than what is left of the noise, and training and testing agree on them.
    assert np.abs(means["train"] - means["test"]).max() < 2
    distances = np.abs(means["train"][:, None] - means["train"][None]).max(axis=2)
    assert distances[~np.eye(4, dtype=bool)].min() > 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("synthetic:classes=1", r"synthetic: key `classes` must be >= 2, got 1\. Set it with synthetic:classes=10"),
        ("synthetic:sise=3", r"synthetic: unknown key `sise`.*Did you mean `size`"),
        ("synthetic:channels=2", "key `channels` must be one of"),
        ("synthetic:size=big", "key `size` must be a whole number"),
        ("synthetic:32", "`32` must be key=value"),
        ("synthetic:classes=10,images=9", "images=9 is fewer than classes=10"),
    ],
)
def test_synthetic_settings_are_checked(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_synthetic(text)
