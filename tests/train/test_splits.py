"""Which images train, which choose, and which judge."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from augury.errors import UsageError
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.source import ArraySource, Collection
from augury_train.data.splits import Split, split

COUNTS = (40, 20, 20)
CLASSES = ["ant", "bee", "cow"]


def source(counts: tuple[int, ...] = COUNTS, seed: int = 0) -> ArraySource:
    """So many images of each class, shuffled; each is its own number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return ArraySource(images, labels.astype(np.int64))


def collection(**counts: tuple[int, ...]) -> Collection:
    return Collection({name: source(each, seed) for seed, (name, each) in enumerate(counts.items())}, CLASSES)


def config(**settings: Any) -> DataConfig:
    return DataConfig(**settings)


def of_each(part: Split | None) -> list[int]:
    """Images of each class."""
    assert part is not None
    assert torch.equal(part.labels, torch.from_numpy(part.source.labels)[part.rows])
    return torch.bincount(part.labels, minlength=len(CLASSES)).tolist()


def test_one_flat_tree_becomes_three_stratified_parts() -> None:
    made = split(collection(all=COUNTS), config(test_fraction=0.25, val_fraction=0.2))
    assert of_each(made.test) == [10, 5, 5]
    assert of_each(made.val) == [6, 3, 3]
    assert of_each(made.train) == [24, 12, 12]
    assert made.val is not None
    assert made.test is not None
    rows = torch.cat([made.train.rows, made.val.rows, made.test.rows])
    assert torch.equal(rows.sort().values, torch.arange(80))


def test_a_class_larger_by_one_counts_are_within_one_of_its_share() -> None:
    counts = (37, 23, 11)
    made = split(collection(all=counts), config(test_fraction=0.3))
    for found, count in zip(of_each(made.test), counts, strict=True):
        assert abs(found - 0.3 * count) < 1


def test_splits_that_are_there_are_kept() -> None:
    given = collection(train=(9, 8, 7), val=(3, 2, 1), test=(4, 5, 6))
    made = split(given, config())
    for part, name in ((made.train, "train"), (made.val, "val"), (made.test, "test")):
        assert part is not None
        assert part.source is given.splits[name]
        assert torch.equal(part.rows, torch.arange(len(part.source)))


def test_what_chooses_is_held_out_of_training_and_never_of_the_test() -> None:
    given = collection(train=COUNTS, test=(4, 5, 6))
    made = split(given, config(val_fraction=0.1))
    assert (of_each(made.val), of_each(made.train), of_each(made.test)) == ([4, 2, 2], [36, 18, 18], [4, 5, 6])
    assert made.val is not None
    assert made.val.source is made.train.source is given.splits["train"]
    assert split(collection(train=COUNTS, val=(1, 1, 1)), config()).test is None


def test_splits_depend_on_their_own_seed_alone() -> None:
    given = collection(all=COUNTS)
    first, again, other = (split(given, config(split_seed=seed)) for seed in (7, 7, 8))
    for name in ("train", "val", "test"):
        assert torch.equal(getattr(first, name).rows, getattr(again, name).rows)
        assert not torch.equal(getattr(first, name).rows, getattr(other, name).rows)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(split(given, config(split_seed=7)).train.rows, first.train.rows)
    # How much of training chooses changes nothing about what judges.
    assert first.test is not None
    fewer = split(given, config(split_seed=7, val_fraction=0.3, images_per_class=2)).test
    assert fewer is not None
    assert torch.equal(fewer.rows, first.test.rows)


def test_the_order_of_held_out_images_is_no_order_of_classes() -> None:
    ordered = ArraySource(np.zeros((80, 1, 1, 1), np.uint8), np.repeat(np.arange(3), COUNTS))
    labels = split(Collection({"all": ordered}, CLASSES), config()).train.labels
    assert not torch.equal(labels, labels.sort().values)


@pytest.mark.parametrize(
    ("given", "trained", "judged"),
    [
        ({"train": COUNTS, "val": (3, 2, 1), "test": (4, 5, 6)}, [40, 20, 20], [4, 5, 6]),
        ({"train": COUNTS, "test": (4, 5, 6)}, [40, 20, 20], [4, 5, 6]),
        ({"train": COUNTS, "val": (3, 2, 1)}, [40, 20, 20], [3, 2, 1]),
        ({"all": COUNTS}, [28, 14, 14], [12, 6, 6]),
    ],
)
def test_the_papers_train_on_all_and_choose_on_what_they_report(
    given: dict[str, tuple[int, ...]], trained: list[int], judged: list[int]
) -> None:
    made = split(collection(**given), config(protocol="paper"))
    assert made.val is None
    assert of_each(made.train) == trained
    assert of_each(made.test) == judged


def test_the_papers_need_something_to_report_on() -> None:
    with pytest.raises(UsageError) as caught:
        split(collection(train=COUNTS), config(protocol="paper"))
    assert str(caught.value) == (
        "data.protocol=paper reports on a test split, and this data set has neither test/ nor val/. "
        "Set it with --set data.protocol=validation."
    )


def test_a_few_images_of_each_class_are_the_same_few_of_more() -> None:
    given = collection(all=COUNTS)
    whole = split(given, config())
    few, more = (split(given, config(images_per_class=count)) for count in (3, 9))
    assert of_each(few.train) == [3, 3, 3]
    assert of_each(more.train) == [9, 9, 9]
    assert set(few.train.rows.tolist()) < set(more.train.rows.tolist()) < set(whole.train.rows.tolist())
    assert whole.val is not None
    assert few.val is not None
    assert torch.equal(few.val.rows, whole.val.rows)
    positions = [whole.train.rows.tolist().index(row) for row in few.train.rows.tolist()]
    assert positions == sorted(positions), "in the order of the whole"
    # A class with fewer gives all it has.
    assert of_each(whole.train) == [25, 12, 13]
    assert of_each(split(given, config(images_per_class=13)).train) == [13, 12, 13]


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (
            {"all": (40, 1, 20)},
            {},
            "class `bee` has 1 image(s) to train on, and some are to be held out (data.test_fraction=0.3). "
            "Add images, or remove the class.",
        ),
        (
            {"train": (40, 20, 1)},
            {},
            "class `cow` has 1 image(s) to train on, and some are to be held out (data.val_fraction=0.1). "
            "Add images, or remove the class.",
        ),
        (
            {"train": (40, 0, 20), "test": (1, 1, 1)},
            {},
            "class `bee` has 0 image(s) to train on, and some are to be held out (data.val_fraction=0.1). "
            "Add images, or remove the class.",
        ),
        (
            {"all": (3, 3, 3)},
            {"test_fraction": 0.2},
            "data.test_fraction=0.2: of 9 images in 3 classes that share leaves no image of each class on both sides. "
            "Set it with --set data.test_fraction=0.5, or add images.",
        ),
        (
            {"train": (5, 5, 5)},
            {"val_fraction": 0.95},
            "data.val_fraction=0.95: of 15 images in 3 classes that share leaves no image of each class on both sides. "
            "Set it with --set data.val_fraction=0.5, or add images.",
        ),
        (
            {"train": (5, 0, 5), "val": (1, 1, 1)},
            {},
            "class `bee`: no training image is left of it. Add images, or hold out fewer.",
        ),
    ],
)
def test_splits_that_cannot_be_made_are_refused(
    given: dict[str, tuple[int, ...]], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        split(collection(**given), config(**settings))
    assert str(caught.value) == message


def test_a_part_of_a_part_reads_the_same_images() -> None:
    part = Split(source(), torch.tensor([5, 3, 8, 1])).take(torch.tensor([2, 0]))
    assert part.rows.tolist() == [8, 5]
    assert len(part) == 2
    assert part.labels.dtype == torch.int64
    assert [part.source.read(row).getpixel((0, 0)) for row in part.rows.tolist()] == [8, 5]


def test_digits_are_split_into_three() -> None:
    made = split(open_dataset(config()), config())
    assert made.val is not None
    assert made.test is not None
    assert [len(part) for part in (made.train, made.val, made.test)] == [1131, 126, 540]
    for part in (made.train, made.val, made.test):
        assert (torch.bincount(part.labels, minlength=10) / len(part) - 0.1).abs().max() < 0.02
