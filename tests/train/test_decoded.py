"""Decoded images are kept between starts, and never stand for other ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from augury_train.config import DataConfig
from augury_train.data import decoded, view
from augury_train.data.datasets import open_dataset
from augury_train.data.splits import split
from augury_train.data.view import DataSet, ImageFormat

FORM = ImageFormat(3, 4, 4, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(decoded, "WORTH", 10)
    return tmp_path


@pytest.fixture
def photographs(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (root / "photographs" / name).mkdir(parents=True)
        for number in range(12):
            picture(root / "photographs" / name / f"{number}.png", draw)
    return root / "photographs"


def picture(path: Path, draw: np.random.Generator) -> None:
    Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(path)


def data(folder: Path, form: ImageFormat = FORM, **settings: object) -> DataSet:
    config = DataConfig(dataset=str(folder), **settings)
    collection = open_dataset(config)
    return DataSet(split(collection, config), collection.classes, form, [])


def pixels(opened: DataSet) -> list[torch.Tensor]:
    return [opened.pixels(s) for s in (opened.splits.train, opened.splits.val, opened.splits.test) if s is not None]


def straight(opened: DataSet) -> list[torch.Tensor]:
    return [view.decode(s, opened.format) for s in (opened.splits.train, opened.splits.val, opened.splits.test) if s]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    real: Callable[..., None] = view._decode_into

    def counted(out: NDArray[np.uint8], wanted: object, *rest: object) -> None:
        found.append(len(out))
        real(out, wanted, *rest)

    monkeypatch.setattr(view, "_decode_into", counted)
    return found


def test_a_second_start_decodes_nothing(photographs: Path, reads: list[int]) -> None:
    first = pixels(data(photographs))
    assert reads == [24]
    second = pixels(data(photographs))
    assert reads == [24]
    for one, two, plain in zip(first, second, straight(data(photographs)), strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, plain)


def test_another_split_of_the_same_files_finds_them(photographs: Path, reads: list[int]) -> None:
    pixels(data(photographs))
    other = data(photographs, split_seed=3)
    assert all(torch.equal(a, b) for a, b in zip(pixels(other), straight(other), strict=True))
    assert reads[0] == 24
    assert sum(reads) == 48, "the second 24 are the plain ones"


@pytest.mark.parametrize("change", ["content", "added", "removed", "size", "interpolation"])
def test_what_has_changed_is_decoded_anew(photographs: Path, reads: list[int], change: str) -> None:
    pixels(data(photographs))
    form = FORM
    if change in ("content", "added"):
        name = "3.png" if change == "content" else "new.png"
        picture(photographs / "cats" / name, np.random.default_rng(9))
    elif change == "removed":
        (photographs / "cats" / "3.png").unlink()
    elif change == "size":
        form = ImageFormat(3, 3, 3, "bilinear", (0.5,) * 3, (0.5,) * 3)
    else:
        form = ImageFormat(3, 4, 4, "bicubic", (0.5,) * 3, (0.5,) * 3)
    again = data(photographs, form)
    assert all(torch.equal(a, b) for a, b in zip(pixels(again), straight(again), strict=True))
    assert len(reads) == 5, "one for all of them, then anew, then the three plain ones"


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_file_costs_time_alone(photographs: Path, reads: list[int], root: Path, damage: bytes | None) -> None:
    pixels(data(photographs))
    (kept,) = (root / "data" / "decoded").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100] if damage is None else damage)
    again = data(photographs)
    assert all(torch.equal(a, b) for a, b in zip(pixels(again), straight(again), strict=True))
    assert reads[:2] == [24, 24]


def test_a_data_root_that_cannot_be_written_costs_time_alone(photographs: Path, root: Path) -> None:
    (root / "data").write_text("a file where the folder should be")
    opened = data(photographs)
    assert all(torch.equal(a, b) for a, b in zip(pixels(opened), straight(opened), strict=True))


def test_few_images_and_small_parts_are_not_kept(
    photographs: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = data(photographs, images_per_class=1, test_fraction=0.05, val_fraction=0.05)
    assert all(torch.equal(a, b) for a, b in zip(pixels(part), straight(part), strict=True))
    assert not (root / "data" / "decoded").exists()
    monkeypatch.setattr(decoded, "WORTH", 25)
    pixels(data(photographs))
    assert not (root / "data" / "decoded").exists()


def test_the_longest_unused_go_first(photographs: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "data" / "decoded"
    # Room for the largest of these, of 24 * 3 * 16 bytes, four times.
    monkeypatch.setattr(decoded, "LIMIT", 4608)
    added: list[Path] = []
    for interpolation in ("bilinear", "bicubic"):
        for side in (2, 3, 4):
            if len(added) == 3:
                # Used again, so the second is the longest unused now.
                pixels(data(photographs, ImageFormat(3, 2, 2, "bilinear", (0.5,) * 3, (0.5,) * 3)))
            before = set(folder.glob("*"))
            pixels(data(photographs, ImageFormat(3, side, side, interpolation, (0.5,) * 3, (0.5,) * 3)))
            added += set(folder.glob("*")) - before
            assert sum(path.stat().st_size for path in folder.iterdir()) <= 4608 + 6 * 128
    assert len(added) == 6
    assert [path.exists() for path in added] == [True, False, True, True, True, True]
