"""The classic data sets, read from small files in their own formats."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torchvision.datasets.cifar
import torchvision.datasets.mnist
import torchvision.datasets.svhn

from augury.errors import UsageError
from augury_train.data import named
from augury_train.data.named import open_named, read_idx
from augury_train.data.source import ArraySource, Collection


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data root; no download leaves this machine."""
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", tmp_path / "debian")

    def refuse(*_: Any, **__: Any) -> None:
        print("Downloading")
        raise OSError("no route\nto host")

    for module, function in (
        (torchvision.datasets.cifar, "download_and_extract_archive"),
        (torchvision.datasets.mnist, "download_and_extract_archive"),
        (torchvision.datasets.svhn, "download_url"),
    ):
        monkeypatch.setattr(module, function, refuse)
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def arrays(collection: Collection, split: str) -> ArraySource:
    source = collection.splits[split]
    assert isinstance(source, ArraySource)
    return source


def random_images(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- digits ---


def test_digits_are_scaled_to_255_and_their_statistics_are_theirs() -> None:
    from sklearn.datasets import load_digits

    found = open_named("digits")
    source = arrays(found, "all")
    assert source.images.shape == (1797, 1, 8, 8)
    assert source.images.max() == 255
    levels = load_digits().images
    np.testing.assert_array_equal(source.images[:, 0][levels == 8], 128)
    pixels = source.images.astype(np.float64) / 255
    assert found.mean == [round(float(pixels.mean()), 4)]
    assert found.std == [round(float(pixels.std()), 4)]
    assert found.classes == list("0123456789")
    assert source.labels[:10].tolist() == list(range(10))
    assert found.transforms == ["crop:1"]


# --- Fashion-MNIST ---


def write_idx(path: Path, values: np.ndarray[Any, Any], compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if compressed else content)


def fashion(folder: Path, suffix: str = "", separator: str = "-", seed: int = 0) -> Path:
    for split, count in (("train", 20), ("t10k", 10)):
        images, labels = random_images(count, 28, 28, seed=seed), np.arange(count) % 10
        write_idx(folder / f"{split}-images{separator}idx3-ubyte{suffix}", images, bool(suffix))
        write_idx(folder / f"{split}-labels{separator}idx1-ubyte{suffix}", labels, bool(suffix))
    return folder


@pytest.mark.parametrize(("suffix", "separator"), [("", "-"), (".gz", "-"), ("", ".")])
def test_fashion_mnist_from_a_given_folder(tmp_path: Path, suffix: str, separator: str) -> None:
    found = open_named(f"fashion_mnist:{fashion(tmp_path / 'here', suffix, separator)}")
    train, test = arrays(found, "train"), arrays(found, "test")
    np.testing.assert_array_equal(train.images, random_images(20, 28, 28)[:, None])
    np.testing.assert_array_equal(test.images, random_images(10, 28, 28)[:, None])
    assert test.labels.tolist() == list(range(10))
    assert train.labels.dtype == np.int64
    assert found.classes[0] == "T-shirt/top"
    assert found.classes[9] == "Ankle boot"
    assert (found.transforms, found.mean, found.std) == (["crop:2", "flip"], [0.2860], [0.3530])
    assert train.read(3).mode == "L"


def test_fashion_mnist_is_looked_for_in_order(tmp_path: Path, root: Path) -> None:
    places = [root / "fashion-mnist", root / "FashionMNIST" / "raw", tmp_path / "debian"]
    for number, place in reversed(list(enumerate(places))):
        fashion(place, ".gz" if number == 2 else "", seed=number)
        images = arrays(open_named("fashion_mnist"), "train").images
        np.testing.assert_array_equal(images[:, 0], random_images(20, 28, 28, seed=number))


def test_fashion_mnist_that_cannot_be_fetched(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError) as raised:
        open_named("fashion_mnist")
    message = str(raised.value)
    assert "\n" not in message
    for part in (f"{root}/fashion-mnist", str(tmp_path / "debian"), "no route to host", "AUGURY_DATA"):
        assert part in message
    assert "Put the four IDX files (train-images-idx3-ubyte[.gz], ...) into" in message
    # Standard output is the program's own.
    assert capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="no Fashion-MNIST files here, train-images-idx3-ubyte"):
        open_named(f"fashion_mnist:{tmp_path / 'nowhere'}")


def test_damaged_idx_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_idx(path, random_images(3, 2, 2))
    np.testing.assert_array_equal(read_idx(path, 3), random_images(3, 2, 2))
    whole = path.read_bytes()
    for content, message in (
        (whole[:-1], "holds 11 bytes where its header says 3x2x2"),
        (whole + b"!", "holds 13 bytes"),
        (whole[:7], "not an IDX file"),
        (b"\0\0\x0d" + whole[3:], "not an IDX file of bytes in 3"),
        (gzip.compress(whole)[:-9], "cannot be read"),
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_idx(path, 3)


def test_idx_files_of_any_size_are_refused_before_they_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 4))
    with pytest.raises(UsageError, match="holds 0 bytes where its header says 2147483648x2147483648x4"):
        read_idx(path, 3)
    monkeypatch.setattr(named, "LARGEST_IDX", 2**20)
    write_idx(path, np.zeros((2, 2**10, 2**10)), compressed=True)
    with pytest.raises(UsageError, match=r"cannot be read \(it is larger than 1 MiB\)"):
        read_idx(path, 3)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match=r"cannot be read \(it is no regular file\)"):
        read_idx(path, 3)


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    folder = fashion(tmp_path / "here")
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(9))
    with pytest.raises(UsageError, match="10 test images but 9 labels"):
        open_named(f"fashion_mnist:{folder}")
    write_idx(folder / "t10k-labels-idx1-ubyte", np.arange(10) + 20)
    with pytest.raises(UsageError, match="the test labels are not 0 to 9"):
        open_named(f"fashion_mnist:{folder}")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UsageError, match=r"t10k-labels-idx1-ubyte\[\.gz\] is missing"):
        open_named(f"fashion_mnist:{folder}")


# --- CIFAR and SVHN ---


@pytest.fixture
def _unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision knows the published files by their checksums; ours are small."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, *_: Path(path).is_file())


def write_pickle(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


@pytest.mark.usefixtures("_unchecked")
def test_cifar10_from_its_batches(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        write_pickle(folder / name, {"data": random_images(4, 3072, seed=number), "labels": [number, 9, 8, 7]})
    write_pickle(folder / "batches.meta", {"label_names": [*"abcdefghi", "truck"]})
    found = open_named("cifar10")
    train, test = arrays(found, "train"), arrays(found, "test")
    assert train.images.shape == (20, 3, 32, 32)
    assert train.images.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(test.images, random_images(4, 3072, seed=5).reshape(4, 3, 32, 32))
    np.testing.assert_array_equal(train.images[4:8], random_images(4, 3072, seed=1).reshape(4, 3, 32, 32))
    assert train.labels.tolist() == [0, 9, 8, 7, 1, 9, 8, 7, 2, 9, 8, 7, 3, 9, 8, 7, 4, 9, 8, 7]
    assert found.classes[-1] == "truck"
    assert found.mean == [0.4914, 0.4822, 0.4465]
    assert found.transforms == ["crop:4", "flip"]
    image = test.read(0)
    assert image.getpixel((5, 7)) == tuple(test.images[0, :, 7, 5].tolist())


@pytest.mark.usefixtures("_unchecked")
def test_cifar100_has_the_fine_classes(root: Path) -> None:
    folder = root / "cifar-100-python"
    for name in ("train", "test"):
        labels = {"fine_labels": [99, 0], "coarse_labels": [1, 1]}
        write_pickle(folder / name, {"data": random_images(2, 3072), **labels})
    write_pickle(folder / "meta", {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": ["x"]})
    found = open_named("cifar100")
    assert arrays(found, "test").labels.tolist() == [99, 0]
    assert found.classes[99] == "fine 99"
    assert found.mean == [0.5071, 0.4865, 0.4409]


@pytest.mark.usefixtures("_unchecked")
def test_svhn_from_its_mat_files(root: Path) -> None:
    (root / "svhn").mkdir()
    for split in ("train", "test"):
        # Height, width, colour, number; and 10 for the digit 0.
        content = {"X": random_images(32, 32, 3, 4), "y": np.array([[10], [1], [2], [9]], dtype=np.uint8)}
        scipy.io.savemat(root / "svhn" / f"{split}_32x32.mat", content)
    found = open_named("svhn")
    train = arrays(found, "train")
    assert train.labels.tolist() == [0, 1, 2, 9]
    np.testing.assert_array_equal(train.images, random_images(32, 32, 3, 4).transpose(3, 2, 0, 1))
    assert train.read(1).getpixel((2, 3)) == tuple(train.images[1, :, 3, 2].tolist())
    assert found.transforms == ["crop:4"]


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("cifar10", "cifar-10-batches-py/ (from cifar-10-python.tar.gz) into"),
        ("cifar100", "cifar-100-python/ (from cifar-100-python.tar.gz) into"),
        ("svhn", "train_32x32.mat and test_32x32.mat into"),
    ],
)
def test_a_failed_download_is_one_clear_line(
    name: str, by_hand: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as raised:
        open_named(name)
    message = str(raised.value)
    assert message.startswith(f"{name}: no intact files in {root}")
    assert "the download failed (no route to host)" in message
    assert by_hand in message
    assert "\n" not in message
    assert capsys.readouterr().out == ""
