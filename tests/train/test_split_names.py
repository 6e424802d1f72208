"""Which names are names of splits, and that no layout of images turns one into a class without a word."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from augury.errors import UsageError
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.source import Collection
from augury_train.data.split_names import doubtful, parts_of


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))


# --- the rule ---

SPLITS = {
    "train": "train Train TRAIN trains training trn train_images images_train train2017 training_set 01_train "
    "train.cropped dataset_train trainImages ImagesTrain trainset traindata minitrain TrainSet train-v2 train(1)",
    "val": "val vals valid validation dev eval evaluation val-set Val valset devset minival val_2012",
    "test": "test TEST tests testing tst holdout hold-out held_out test_data TestImages testset test.1",
    "unlabelled": "unlabelled unlabeled UNLABELED unlabeled_images",
}
OTHERS = (
    "cat dog contest latest trainer trainers training_shoes test_tube trainStation bullet_train protest interval "
    "valve value medieval testament device devil deval 0 90 tram straintest images data set mask"
)


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, text in SPLITS.items() for name in text.split()])
def test_names_of_splits(split: str, name: str) -> None:
    assert parts_of(name).splits == {split}
    assert parts_of(name).is_split


@pytest.mark.parametrize("name", OTHERS.split())
def test_names_of_other_things(name: str) -> None:
    assert not parts_of(name).is_split


def test_names_of_two_splits() -> None:
    for name in ("trainval", "train_val", "trainvals"):
        assert parts_of(name).splits == {"train", "val"}
        assert parts_of(name).is_split
    assert parts_of("unlabeled test").splits == {"unlabelled", "test"}
    assert parts_of("trainers").splits == frozenset()
    assert parts_of("training_shoes").content == ("shoes",)


@pytest.mark.parametrize(
    ("names", "refused", "noted"),
    [
        ("cat dog", "", ""),
        ("train test", "train test", ""),
        ("train_images val_images", "train_images val_images", ""),
        ("train", "train", ""),
        # The vehicle, among things that are no splits.
        ("bus car train", "", "train"),
        ("0 1 train", "", "train"),
        ("bus train", "train", ""),
        ("bus car test", "test", ""),
        ("bus car train val", "train val", ""),
        ("bus car train test_bench", "", "train test_bench"),
        ("bus car train plants_train plants_test", "train plants_train plants_test", ""),
        # One split's name twice is no layout.
        ("steam_train_1 steam_train_2 car", "", "steam_train_1 steam_train_2"),
        ("toy_train toy_trains car", "", "toy_train toy_trains"),
        ("images labels train", "train", ""),
        ("bus car train train_station", "", "train train_station"),
        # Words beside that of a split.
        ("boots shoes training_shoes", "", "training_shoes"),
        ("freight_train bullet_train steam_train", "", "freight_train bullet_train steam_train"),
        ("cat test_tube train_station", "", "test_tube train_station"),
        ("plants_train plants_test", "plants_train plants_test", ""),
        ("cat trainA testA trainB testB", "trainA testA trainB testB", ""),
        ("train_cats test_dogs", "train_cats test_dogs", ""),
        ("valid invalid", "valid", ""),
    ],
)
def test_would_be_classes(names: str, refused: str, noted: str) -> None:
    assert doubtful(names.split()) == (refused.split(), noted.split())


def test_a_table_named_like_a_split_makes_a_split_of_train() -> None:
    assert doubtful(["bus", "car", "train"], ["labels.csv"]) == ([], ["train"])
    assert doubtful(["bus", "car", "train"], ["train_labels.csv"]) == (["train"], [])


# --- layouts ---


def put(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".png"):
            Image.new("RGB", (4, 3)).save(root / path)
        else:
            (root / path).write_text("image,label\n")
    return root


def images(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(count)]


def opened(place: Path | str) -> Collection:
    return open_dataset(DataConfig(dataset=str(place)))


READ = "train/<class>/*.jpg, with val/<class>/ and test/<class>/ if there are any"
SORT = (
    f"{READ}, or <class>/*.jpg alone. Sort the images into one folder for each class: train/cat/0001.jpg, "
    "train/dog/0001.jpg."
)
FOLDERS: dict[str, tuple[list[str], str]] = {
    "a table": (
        [*images("train", "test", count=3), "train.csv"],
        "{root}: `test` (3 images) and `train` (3 images) are named like splits, not classes; beside them: train.csv.\n"
        f"augury takes labels from folders (train.csv is not read): {SORT}",
    ),
    "flat splits": (
        images("train", "val", "test"),
        "{root}: `test` (2 images) and `train` (2 images) and `val` (2 images) are named like splits, not classes.\n"
        f"augury takes labels from folders (these images have none): {SORT}",
    ),
    "odd names": (
        images("train_images/a", "train_images/b", "val_images/a", "val_images/b"),
        "{root}: `train_images` (2 folders: a, b) and `val_images` (2 folders: a, b) are named like splits, not "
        f"classes.\nRename `train_images` to `train` and `val_images` to `val`: augury reads {READ}.",
    ),
    "one flat split and a table": (
        [*images("train"), "train.csv"],
        "{root}: `train` (2 images) is named like a split, not like a class; beside it: train.csv.\n"
        f"augury takes labels from folders (train.csv is not read): {SORT}",
    ),
    "one flat split": (images("TRAIN"), "{root}: `TRAIN` (2 images) is named like a split, not like a class.\naugury"),
    "no training images": (
        images("val/a", "val/b", "test/a", "test/b"),
        "{root}: `test` (2 folders: a, b) and `val` (2 folders: a, b) are named like splits, not classes.\n"
        f"Name the folder of the training images `train`, the others `val` and `test`: augury reads {READ}.",
    ),
    "train with labels missing": (
        images("train", "val/a", "val/b"),
        "{root}: `train` (2 images) and `val` (2 folders: a, b) are named like splits, not classes.\naugury takes",
    ),
    "a test split among classes": (
        images("cat", "dog", "test"),
        "{root}: `test` (2 images) is named like a split, not like a class.\nIf it is a class, rename the folder: "
        "`test_object`, say. If not, put splits above classes (train/cat/0001.jpg, test/cat/0001.jpg), or move it out "
        "of the data set.",
    ),
    "unlabelled images among classes": (images("cat", "dog", "unlabeled"), "{root}: `unlabeled` (2 images) is named"),
    "a folder that is there twice": (
        images("train/train/a", "train/train/b"),
        "{root}/train: `train` (2 folders: a, b) is named like a split, not like a class.\n"
        "If the folder is there twice, give {root}/train as the data set.",
    ),
    "one level too many": (
        images("data/x/train/a", "data/x/train/b", "data/x/val/a", "data/x/val/b"),
        "{root}: found 1 class folder(s), at least 2 are needed. Put the images of each class in a folder of its own; "
        "or did you mean {root}/data/x?",
    ),
    "splits below classes": (
        images("cat/train", "cat/test", "dog/train", "dog/test"),
        "{root}/cat: `test` and `train` are named like a split. Every image below `cat` would count as the same split. "
        "Put splits above classes (train/cat/, test/cat/), or rename the folder.",
    ),
    "a split below one class": (
        images("cat", "dog", "dog/2019/Test_Images"),
        "{root}/dog/2019: `Test_Images` is named like a split.",
    ),
    "a split below a class of a split": (
        images("train/cat", "train/dog", "train/dog/holdout"),
        "{root}/train/dog: `holdout` is named like a split.",
    ),
    "splits below folders for images and masks": (
        images("images/train", "images/val", "masks/train", "masks/val"),
        "{root}/images: `train` and `val` are named like a split.",
    ),
    "a flat test split beside labelled training images": (
        images("train/a", "train/b", "test"),
        "{root}/test: holds no class folders, so its images have no labels. Sort them into a, b, or move it out of the "
        "data set.",
    ),
    "a flat validation split": (images("train/a", "train/b", "val"), "{root}/val: holds no class folders, so its im"),
    "splits in the names of classes": (
        images("cat_train", "cat_test", "dog_train", "dog_test"),
        "{root}: `cat_test` (2 images) and `cat_train` (2 images) and `dog_test` (2 images) and `dog_train` (2 images) "
        "are named like splits, not classes.\naugury takes labels from folders",
    ),
}


def assert_refused(place: Path | str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        opened(place)
    assert str(raised.value).startswith(message), str(raised.value)


@pytest.mark.parametrize(("paths", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folders_with_splits_for_classes_are_refused(tmp_path: Path, paths: list[str], message: str) -> None:
    root = put(tmp_path / "data", *paths)
    assert_refused(root, message.format(root=root))


def test_relative_paths_and_links_are_refused_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "data", *images("train", "test"))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for place in ("data", "./data/../data", "link"):
        assert_refused(place, f"{tmp_path / place}: `test` (2 images) and `train` (2 images) are named like splits")
    (tmp_path / "linked").mkdir()
    for split in ("train", "test"):
        (tmp_path / "linked" / split).symlink_to(tmp_path / "data" / split)
    assert_refused("linked", f"{tmp_path}/linked: `test` (2 images) and `train`")


def test_a_train_among_vehicles_is_a_class_with_a_note(tmp_path: Path) -> None:
    found = opened(put(tmp_path / "data", *images("bus", "car", "train")))
    assert found.classes == ["bus", "car", "train"]
    assert list(found.splits) == ["all"]
    assert found.notes == [
        f"{tmp_path}/data: class `train` has the word of a split in its name, and is taken for a class. "
        "If it is a split: train/<class>/, val/<class>/ and test/<class>/ are read."
    ]
    inside = opened(put(tmp_path / "split", *images("train/bus", "train/car", "train/train")))
    assert inside.classes == ["bus", "car", "train"]
    assert list(inside.splits) == ["train"]
    assert len(inside.notes) == 1
    shoes = opened(put(tmp_path / "shoes", *images("boots", "shoes", "training_shoes", "boots/new", "boots/old")))
    assert shoes.classes == ["boots", "shoes", "training_shoes"]
    assert ["`training_shoes`" in note for note in shoes.notes] == [True]


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *images("train/a", "train/b", "test_images", "spare", "train"), "0.png")
    found = opened(root)
    assert len(found.splits["train"]) == 4
    assert found.notes == [
        f"{root}/spare: not used; splits are called train, val and test.",
        f"{root}/test_images: not used; splits are called train, val and test. Did you mean `test`?",
        f"{root}/train: 2 images in no class folder, left out.",
    ]
    flat = opened(put(tmp_path / "flat", *images("a", "b"), "0.png", "1.txt"))
    assert flat.notes == [f"{tmp_path}/flat: 1 image in no class folder, left out."]


def test_folders_that_systems_make_are_no_classes_and_hold_no_images(tmp_path: Path) -> None:
    paths = [*images("cat", "dog", "__MACOSX/cat", "$RECYCLE.BIN"), "cat/@eaDir/0.png/SMALL.png"]
    found = opened(put(tmp_path / "data", *paths))
    assert (found.classes, len(found.splits["all"]), found.notes) == (["cat", "dog"], 4, [])
    packed = opened(pack(tmp_path / "x.tar", *paths))
    assert (packed.classes, len(packed.splits["all"]), packed.notes) == (["cat", "dog"], 4, [])


# --- tars and shards ---


def pack(path: Path, *names: str, content: bytes = b"") -> Path:
    file = io.BytesIO()
    Image.new("RGB", (4, 3)).save(file, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            info, inside = tarfile.TarInfo(name), file.getvalue() if name.endswith(".png") else content
            info.size = len(inside)
            tar.addfile(info, io.BytesIO(inside))
    return path


TARS: dict[str, tuple[list[str], str]] = {
    "flat": (images("train", "test"), "{tar}: `test` (2 images) and `train` (2 images) are named like splits"),
    "odd names": (
        images("train_images/a", "train_images/b", "val_images/a"),
        "{tar}: `train_images` and `val_images` are named like a split. Name the folders above the classes train, val",
    ),
    "odd names below others": (images("x/trn/a", "x/trn/b"), "{tar}/x: `trn` is named like a split."),
    "splits below classes": (
        images("cat/train", "cat/test", "dog/train"),
        "{tar}: `test` (2 images) and `train` (4 im",
    ),
    "no training images": (
        images("val/a", "val/b", "test/a", "test/b"),
        "{tar}: has no split called train, but test and val.",
    ),
    "validation images beside others": (
        images("val/a", "val/b", "a", "b"),
        "{tar}: has no split called train, but val.",
    ),
    "two splits above a class": (
        images("train/x/val/a"),
        "{tar}: train/x/val/a/0.png lies below folders of two splits.",
    ),
}


@pytest.mark.parametrize(("names", "message"), TARS.values(), ids=TARS)
def test_tars_with_splits_for_classes_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    tar = pack(tmp_path / "x.tar", *names)
    assert_refused(tar, message.format(tar=tar))


def test_tars_named_like_splits_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pack(tmp_path / "odd" / f"{split}_images.tar", *images("a", "b"))
        pack(tmp_path / "flat" / f"{split}.tar", *images("."))
    assert_refused(tmp_path / "odd", f"{tmp_path}/odd: `train_images` and `val_images` are named like a split.")
    assert_refused(tmp_path / "flat", f"{tmp_path}/flat: `train` (2 images) and `val` (2 images) are named like splits")


def test_a_tar_with_one_split_is_read_and_told(tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", *images("val/a", "val/b"))
    found = opened(tar)
    assert list(found.splits) == ["all"]
    assert found.notes == [f"{tar}: has no split but val, and trains on a part of that."]


def shards(folder: Path, *names: str) -> str:
    for name in names:
        pack(folder / f"{name}.tar", "0.png", "0.cls", content=b"0")
        pack(folder / f"{name}-more.tar", "0.png", "0.cls", content=b"1")
    return f"wds/{folder}"


def test_shards_are_split_by_all_words_for_splits(tmp_path: Path) -> None:
    found = opened(shards(tmp_path / "s", "toy-trn-0", "toy-dev-0", "toy-testset-0"))
    assert {split: len(source) for split, source in found.splits.items()} == {"train": 2, "val": 2, "test": 2}
    assert_refused(shards(tmp_path / "n", "val-0", "test-0"), f"{tmp_path}/n: has no split called train, but test and")
    two = shards(tmp_path / "t", "trainval-0", "test-0")
    assert_refused(two, f"{tmp_path}/t/trainval-0-more.tar: `trainval-0-more` names two splits, train and val.")


# --- Hugging Face's and TensorFlow's data sets ---


class _Reader:
    """A reader of timm's with one image of each class."""

    label_key = "kind"

    def __init__(self, names: list[str], split: str) -> None:
        self.class_to_idx = {name: number for number, name in enumerate(names)}
        self.split = split
        labels = [-1] * len(names) if split == "secret" else list(range(len(names)))
        self.dataset = {"kind": labels}

    def __iter__(self) -> Any:
        return iter([(Image.new("RGB", (4, 3)), label) for label in self.dataset["kind"]])


def hub(monkeypatch: pytest.MonkeyPatch, classes: list[str], splits: dict[str, str]) -> None:
    """Let every data set of the hub have these classes and splits; those of the value "secret" have no labels."""
    from types import ModuleType, SimpleNamespace

    import timm.data.readers

    module: Any = ModuleType("datasets")
    module.__spec__ = SimpleNamespace()
    module.get_dataset_split_names = lambda name: list(splits)
    module.load_dataset_builder = lambda name: SimpleNamespace(info=SimpleNamespace(features={}))
    module.Image = module.ClassLabel = int
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(timm.data.readers, "create_reader", lambda name, split, **_: _Reader(classes, splits[split]))


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_classes_of_the_hub_named_like_splits(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ["Train", "test_data"], {"train": ""})
    assert_refused(f"{prefix}/pets", f"{prefix}/pets: `Train` (1 image) and `test_data` (1 image) are named like spl")
    hub(monkeypatch, ["bus", "car", "train"], {"train": ""})
    found = opened(f"{prefix}/pets")
    assert found.classes == ["bus", "car", "train"]
    assert ["`train`" in note for note in found.notes] == [True]


@pytest.mark.parametrize("prefix", ["hfds", "hfids"])
def test_splits_of_the_hub_that_are_not_used_are_told(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, ["cat", "dog"], {"train": "", "test": "secret", "extra": "", "dev": ""})
    found = opened(f"{prefix}/pets")
    assert list(found.splits) == ["train"]
    assert found.notes == [
        f"{prefix}/pets: not used: extra, dev; splits are called train, val (validation) and test.",
        f"{prefix}/pets: the images of its test split have no labels, so it is left out.",
    ]
    hub(monkeypatch, ["cat", "dog"], {"train": "", "val": "", "validation": ""})
    assert_refused(f"{prefix}/pets", f"{prefix}/pets: both val and validation are its val split.")
    hub(monkeypatch, ["cat", "dog"], {"test": ""})
    assert opened(f"{prefix}/pets").notes == [f"{prefix}/pets: has no split but test, and trains on a part of that."]


def test_below_splits_that_are_there_only_most_names_count(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *images("train/bus", "train/train", "test/bus", "test/train"))
    found = opened(root)
    assert found.classes == ["bus", "train"]
    assert [note for note in found.notes if "class `train` has the word of a split in its name" in note]


def test_measurements_below_a_class_are_not_taken_for_splits(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *images("cat/test_1", "cat/test_2", "dog"))
    assert opened(root).classes == ["cat", "dog"]
