"""Tars of images, shards of a WebDataset, and timm's readers of other people's data sets."""

from __future__ import annotations

import importlib.machinery
import io
import json
import pickle
import sys
import tarfile
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data.readers
from PIL import Image

from augury.errors import UsageError
from augury_train.data.readers import DecodedSource, open_reader
from augury_train.data.source import ArraySource, Collection

Colour = tuple[int, int, int]


def png(colour: Colour, size: tuple[int, int] = (4, 3)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> bytes:
    """Write a tar; gives its bytes, for tars in tars."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.getvalue())
    return file.getvalue()


def opened(name: object, skip_bad: bool = False) -> Collection:
    return open_reader(str(name), skip_bad=skip_bad)


def told(collection: Collection, split: str) -> list[tuple[str, Any]]:
    """(class, first pixel) of the images of a split."""
    source = collection.splits[split]
    return [
        (collection.classes[label], source.read(index).getpixel((0, 0))) for index, label in enumerate(source.labels)
    ]


# --- tars of images ---


def test_a_tar_of_class_folders(tmp_path: Path) -> None:
    tar = tmp_path / "pets.tar"
    pack(
        tar,
        {
            "./pets/dog/b.png": png((1, 0, 0)),
            "./pets/cat/a.PNG": png((2, 0, 0)),
            "./pets/dog/a.webp": png((3, 0, 0)),
            "./pets/cat/._a.png": b"what a Mac leaves behind",
            "./pets/readme.txt": b"no image",
        },
    )
    found = opened(tar)
    assert found.classes == ["cat", "dog"]
    assert told(found, "all") == [("dog", (1, 0, 0)), ("cat", (2, 0, 0)), ("dog", (3, 0, 0))]
    assert found.splits["all"].name(1) == f"{tar}:./pets/cat/a.PNG"
    assert found.splits["all"].size is None


def test_splits_inside_a_tar_are_kept_apart(tmp_path: Path) -> None:
    files = {
        f"x/{split}/{kind}/0.png": png((number, label, 0))
        for number, split in enumerate(("train", "valid", "testing"))
        for label, kind in enumerate(("cat", "dog"))
    }
    pack(tmp_path / "x.tar", files)
    found = opened(tmp_path / "x.tar")
    assert list(found.splits) == ["train", "val", "test"]
    for number, split in enumerate(found.splits):
        assert told(found, split) == [("cat", (number, 0, 0)), ("dog", (number, 1, 0))]


def test_a_folder_of_tars_and_tars_in_tars(tmp_path: Path) -> None:
    inner = {kind: pack(tmp_path / "spare" / "x", {"0.png": png((n, 7, 7))}) for n, kind in enumerate(("cat", "dog"))}
    # One tar a class in a folder; a tar a split; and, as ImageNet comes, one tar a class inside one tar.
    for kind, content in inner.items():
        (tmp_path / "kinds").mkdir(exist_ok=True)
        (tmp_path / "kinds" / f"{kind}.tar").write_bytes(content)
    assert told(opened(tmp_path / "kinds"), "all") == [("cat", (0, 7, 7)), ("dog", (1, 7, 7))]
    for split in ("train", "val"):
        pack(tmp_path / "splits" / f"{split}.tar", {f"{kind}.tar": content for kind, content in inner.items()})
    found = opened(tmp_path / "splits")
    assert list(found.splits) == ["train", "val"]
    assert told(found, "val") == [("cat", (0, 7, 7)), ("dog", (1, 7, 7))]


def test_tars_in_tars_in_tars(tmp_path: Path) -> None:
    deepest = pack(tmp_path / "spare", {"readme": b"!" * 700, "0.png": png((5, 6, 7))})
    middle = pack(tmp_path / "spare", {"note": b"?" * 1300, "cat.tar": deepest, "dog.tar": deepest})
    pack(tmp_path / "x.tar", {"first": b".", "train.tar": middle})
    assert told(opened(tmp_path / "x.tar"), "train") == [("cat", (5, 6, 7)), ("dog", (5, 6, 7))]


def test_a_class_in_a_tar_may_be_called_train(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {f"things/{kind}/0.png": png((1, 1, 1)) for kind in ("train", "bus", "tram")})
    assert told(opened(tmp_path / "x.tar"), "all") == [(kind, (1, 1, 1)) for kind in ("train", "bus", "tram")]


def test_labels_are_those_of_timm(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {f"data/{kind}/{n}.png": png((n, 0, 0)) for kind in "cab" for n in range(3)})
    theirs = timm.data.readers.create_reader("", root=str(tmp_path / "x.tar"), cache_tarinfo=False)
    expected = {theirs.filename(n): int(target) for n, target in enumerate(theirs.targets)}
    source = opened(tmp_path / "x.tar").splits["all"]
    assert {source.name(n).partition(":")[2]: int(label) for n, label in enumerate(source.labels)} == expected


def test_tar_sources_travel_and_are_read_by_many_threads(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {f"{n % 2}/{n}.png": png((n, 0, 0), (40, 40)) for n in range(100)})
    source = pickle.loads(pickle.dumps(opened(tmp_path / "x.tar").splits["all"]))
    with ThreadPoolExecutor(8) as pool:
        pixels = list(pool.map(lambda index: source.read(index).getpixel((0, 0))[0], range(100)))
    assert pixels == list(range(100))


def test_bad_images_in_tars_are_named_or_left_out(tmp_path: Path) -> None:
    files = {"a/0.png": png((1, 1, 1)), "a/1.png": b"nothing", "b/0.png": png((2, 2, 2))}
    pack(tmp_path / "x.tar", files)
    with pytest.raises(UsageError, match=r"x\.tar:a/1\.png: not a readable image \(.*--skip-bad-images"):
        opened(tmp_path / "x.tar").splits["all"].read(1)
    found = opened(tmp_path / "x.tar", skip_bad=True)
    assert told(found, "all") == [("a", (1, 1, 1)), ("b", (2, 2, 2))]
    assert found.skipped == [f"{tmp_path}/x.tar:a/1.png: no image format that Pillow knows"]
    pack(tmp_path / "x.tar", {**files, "b/0.png": b""})
    with pytest.raises(UsageError, match=r"none of the all images of a class can be read.*a/1\.png"):
        opened(tmp_path / "x.tar", skip_bad=True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": b""}, "no images in it"),
        ({"0.png": b""}, r"0\.png lies in no folder.*give wds/"),
        ({"a/0.png": b""}, r"found 1 class\(es\), at least 2 are needed"),
        (
            {"train/a/0.png": b"", "train/b/0.png": b"", "test/c/0.png": b""},
            "test has class `c`, which training does not",
        ),
        ({"train/a/0.png": b"", "b/0.png": b""}, r"b/0\.png belongs to no split, while others are in train"),
    ],
)
def test_tars_that_make_no_sense_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    pack(tmp_path / "x.tar", files)
    with pytest.raises(UsageError, match=message):
        opened(tmp_path / "x.tar")


# --- shards of a WebDataset ---


def shards(folder: Path) -> Path:
    for split, number, labels in (("train", 0, (10, 2)), ("train", 1, (2,)), ("val", 0, (2, 10))):
        files = {}
        for row, label in enumerate(labels):
            files[f"deep/s{row}.cls"] = str(label).encode()
            files[f"deep/s{row}.img.png"] = png((label, number, row))
            files[f"deep/s{row}.json"] = json.dumps({"fine": label + 1}).encode()
        pack(folder / f"toy-{split}-{number:03d}.tar", files)
    return folder


def test_shards_in_a_folder_are_split_by_their_names(tmp_path: Path) -> None:
    found = opened(f"wds/{shards(tmp_path / 's')}")
    assert found.classes == ["2", "10"]
    assert list(found.splits) == ["train", "val"]
    assert told(found, "train") == [("10", (10, 0, 0)), ("2", (2, 0, 1)), ("2", (2, 1, 0))]
    assert told(found, "val") == [("2", (2, 0, 0)), ("10", (10, 0, 1))]
    assert found.splits["train"].name(2) == f"{tmp_path}/s/toy-train-001.tar:deep/s0.img.png"


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("toy-train-{000..001}.tar", 3),
        ("toy-train-00[0].tar", 2),
        ("toy-{train,val}-000.tar", 2),
        ("toy-{train-000,train-001}.tar", 3),
        ("toy-train-*", 3),
    ],
)
def test_shards_by_patterns(tmp_path: Path, pattern: str, count: int) -> None:
    found = opened(f"wds/{shards(tmp_path / 's')}/{pattern}")
    assert list(found.splits) == (["train", "val"] if "val" in pattern else ["train"])
    assert len(found.splits["train"]) == count


def test_shards_by_timms_info_file(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    splits = {
        "train": {"filenames": ["toy-train-000.tar", "toy-val-000.tar"], "alt_label": "fine", "num_samples": 4},
        "validation": {"filenames": ["toy-train-001.tar"], "alt_label": "fine"},
    }
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    found = opened(f"wds/{folder}")
    assert found.classes == ["3", "11"]
    assert [kind for kind, _ in told(found, "train")] == ["11", "3", "3", "11"]
    assert told(found, "val") == [("3", (2, 1, 0))]
    (folder / "_info.json").write_text("[]")
    with pytest.raises(UsageError, match=r"_info\.json: not a list of splits as timm writes it"):
        opened(f"wds/{folder}")


def test_shards_without_splits_are_one(tmp_path: Path) -> None:
    pack(
        tmp_path / "s" / "part-0.tar",
        {"a.jpg": png((1, 1, 1)), "a.cls": b"0\n", "b.jpg": png((2, 2, 2)), "b.cls": b"1"},
    )
    assert told(opened(f"wds/{tmp_path}/s"), "all") == [("0", (1, 1, 1)), ("1", (2, 2, 2))]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b""}, r"a\.jpg has no class: a\.cls is missing in the same shard"),
        ({"a.jpg": b"", "a.cls": b"cat"}, r"a\.cls: b'cat' is no whole number, the class of the sample"),
    ],
)
def test_samples_without_a_class_are_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    pack(tmp_path / "s" / "x.tar", files)
    with pytest.raises(UsageError, match=message):
        opened(f"wds/{tmp_path}/s")


def test_shards_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train-000\.tar does not exist"):
        opened(f"wds/{tmp_path}/train-{{000..002}}.tar")
    with pytest.raises(UsageError, match=r"no \.tar files there"):
        opened(f"wds/{tmp_path}")
    with pytest.raises(UsageError, match="shards are read from disk"):
        opened("wds/https://example.org/train-000.tar")


# --- Hugging Face's and TensorFlow's data sets, through timm ---


class HubImage:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class HubLabel:
    def __init__(self, names: list[str]) -> None:
        self.names = names


class HubDataset:
    """A split with columns `photo` and `kind`."""

    def __init__(self, rows: list[tuple[bytes, int]]) -> None:
        self.rows = rows
        self.info = hub_info()

    def cast_column(self, column: str, feature: HubImage) -> HubDataset:
        assert column == "photo"
        assert not feature.decode
        return self

    def __getitem__(self, key: Any) -> Any:
        if key == "kind":
            return [label for _, label in self.rows]
        return {"photo": {"bytes": self.rows[key][0], "path": None}, "kind": self.rows[key][1]}

    def __len__(self) -> int:
        return len(self.rows)


def hub_info() -> Any:
    features = {"id": "text", "photo": HubImage(), "kind": HubLabel(["dog", "cat"])}
    return types.SimpleNamespace(features=features, splits=None)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[tuple[bytes, int]]]]:
    """A package `datasets` that has one data set, with the splits in the dict."""
    splits: dict[str, list[tuple[bytes, int]]] = {}
    module: Any = types.ModuleType("datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("datasets", None)
    module.Image, module.ClassLabel = HubImage, HubLabel
    module.load_dataset_builder = lambda name: types.SimpleNamespace(info=hub_info())
    module.get_dataset_split_names = lambda name: list(splits)
    module.load_dataset = lambda name, split, cache_dir=None: HubDataset(splits[split])
    monkeypatch.setitem(sys.modules, "datasets", module)
    # timm keeps the package that it found when its reader was imported.
    monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)
    yield splits
    sys.modules.pop("timm.data.readers.reader_hfds", None)


def test_a_hub_data_set_through_timms_reader(hub: dict[str, list[tuple[bytes, int]]]) -> None:
    hub["train"] = [(png((n, 0, 0), (3 + n, 2)), n % 2) for n in range(4)]
    hub["validation"] = [(png((9, 0, 0)), 1)]
    hub["test"] = [(png((9, 0, 0)), -1)]
    found = opened("hfds/pets")
    assert found.classes == ["dog", "cat"]
    # The published test images have no labels.
    assert list(found.splits) == ["train", "val"]
    assert told(found, "train") == [("dog", (0, 0, 0)), ("cat", (1, 0, 0)), ("dog", (2, 0, 0)), ("cat", (3, 0, 0))]
    assert told(found, "val") == [("cat", (9, 0, 0))]
    assert found.splits["val"].name(0) == "hfds/pets validation image 0"


def test_bad_images_of_a_hub_data_set(hub: dict[str, list[tuple[bytes, int]]]) -> None:
    hub["data"] = [(png((0, 0, 0)), 0), (b"nothing", 1), (png((2, 0, 0)), 1)]
    with pytest.raises(UsageError, match="hfds/pets data image 1: not a readable image"):
        opened("hfds/pets").splits["all"].read(1)
    found = opened("hfds/pets", skip_bad=True)
    assert told(found, "all") == [("dog", (0, 0, 0)), ("cat", (2, 0, 0))]
    assert found.splits["all"].name(1) == "hfds/pets data image 2"
    assert found.skipped == ["hfds/pets data image 1: no image format that Pillow knows"]


def test_hub_data_sets_that_cannot_be_used(
    hub: dict[str, list[tuple[bytes, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.update({"first": [], "second": []})
    with pytest.raises(UsageError, match="hfds/pets: has no split called train, but first, second"):
        opened("hfds/pets")
    hub.clear()
    hub["train"] = [(b"", 0), (b"", -1)]
    with pytest.raises(UsageError, match="1 of the 2 train images have no class"):
        opened("hfds/pets")

    def offline(name: str) -> None:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(sys.modules["datasets"], "load_dataset_builder", offline)
    with pytest.raises(UsageError, match=r"hfds/pets: cannot be opened \(ConnectionError: no network\)"):
        opened("hfds/pets")


class Stream:
    """What timm's readers of streams have in common; the share of a process would be every other image."""

    def __init__(self, images: list[tuple[Image.Image, int]], names: list[str]) -> None:
        self.images = images
        self.class_to_idx = {name: number for number, name in enumerate(names)}
        self.dist_rank, self.dist_num_replicas = 1, 2

    def __iter__(self) -> Iterator[tuple[Image.Image, int]]:
        yield from self.images[self.dist_rank :: self.dist_num_replicas]


def streamed(monkeypatch: pytest.MonkeyPatch, names: list[str], images: list[tuple[Image.Image, int]]) -> list[Any]:
    """Let timm give a `Stream`; what it was asked for goes into the list."""
    asked: list[Any] = []

    def create(name: str, split: str, **options: Any) -> Stream:
        asked.append((name, split, options))
        return Stream(images, names)

    monkeypatch.setattr(timm.data.readers, "create_reader", create)
    return asked


def test_a_stream_is_read_whole_by_every_process(
    hub: dict[str, list[tuple[bytes, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.update({"train": [], "test": []})
    deep = Image.fromarray(np.full((2, 3), 25700, dtype=np.uint16))
    images = [(Image.new("RGB", (3, 2), (n, 0, 0)), n % 2) for n in range(3)] + [(deep, 1)]
    asked = streamed(monkeypatch, ["dog", "cat"], images)
    found = opened("hfids/pets")
    keys = {"input_key": "photo", "target_key": "kind"}
    assert asked[0] == ("hfids/pets", "train", {**keys, "num_samples": 1, "input_img_mode": ""})
    assert isinstance(found.splits["train"], ArraySource)
    assert found.splits["train"].size == (2, 3)
    expected = [("dog", (0, 0, 0)), ("cat", (1, 0, 0)), ("dog", (2, 0, 0)), ("cat", (100, 100, 100))]
    assert told(found, "train") == told(found, "test") == expected


def test_streamed_images_of_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (2 + n, 5 - n, 3), dtype=np.uint8) for n in range(4)]
    asked = streamed(monkeypatch, [], [(Image.fromarray(p), 7 - n % 2) for n, p in enumerate(pixels)])
    module: Any = types.ModuleType("tensorflow_datasets")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorflow_datasets", None)
    prepared: list[str] = []
    module.builder = lambda name: types.SimpleNamespace(
        download_and_prepare=lambda: prepared.append(name), info=types.SimpleNamespace(splits={"train": 0})
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    found = opened("TFDS/pets")
    assert prepared == ["pets"]
    assert asked == [("TFDS/pets", "train", {})]
    assert found.classes == ["6", "7"]
    source = found.splits["train"]
    assert isinstance(source, DecodedSource)
    assert source.labels.tolist() == [1, 0, 1, 0]
    for number, expected in enumerate(pixels):
        np.testing.assert_array_equal(np.asarray(source.read(number)), expected)
    assert pickle.loads(pickle.dumps(source)).read(3).size == (2, 5)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in (("hfds/x", "datasets"), ("hfids/x", "datasets"), ("tfds/x", "tensorflow_datasets")):
        with pytest.raises(UsageError, match=f"{name}: the package `{package}` is needed. .*pip install {package}"):
            opened(name)
    with pytest.raises(UsageError, match="hfds/: the data set's name is missing"):
        opened("hfds/")
