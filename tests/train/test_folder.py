"""Image folders: every shape of tree, what cannot be read, and the index that is kept between starts."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augury.errors import UsageError
from augury_train.data import index
from augury_train.data.folder import open_folder
from augury_train.data.index import Names


@pytest.fixture(autouse=True)
def _own_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))


def picture(path: Path, colour: Any = (10, 20, 30), size: tuple[int, int] = (4, 3), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def tree(root: Path, *parts: str, count: int = 2) -> Path:
    for part in parts:
        for number in range(count):
            picture(root / part / f"{number}.png", (number, len(part), 0))
    return root


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))  # type: ignore[return-value]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that Pillow has opened."""
    names: list[str] = []
    original = Image.open

    def count(file: Any, *arguments: Any, **options: Any) -> Image.Image:
        names.append(os.path.basename(file))
        return original(file, *arguments, **options)

    monkeypatch.setattr(Image, "open", count)
    return names


# --- shapes of trees ---


def test_flat_tree_is_one_split_with_its_classes(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "dog", "cat")
    picture(data / "cat" / "deep" / "er" / "x.JPG")
    picture(data / "cat" / ".hidden.png")
    picture(data / ".git" / "y.png")
    (data / "cat" / "notes.txt").write_text("no image")
    found = open_folder(data, skip_bad=False)
    assert found.classes == ["cat", "dog"]
    source = found.splits["all"]
    assert list(found.splits) == ["all"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1]
    assert source.labels.dtype == np.int64
    assert [source.name(i) for i in range(3)] == [str(data / "cat" / n) for n in ("0.png", "1.png", "deep/er/x.JPG")]
    assert (source.channels, source.size, len(source)) == (3, (3, 4), 5)
    assert pixel(source.read(4)) == (1, 3, 0)


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        ({"train": "train", "val": "val", "test": "test"}, ["train", "val", "test"]),
        ({"train": "train", "val": "val"}, ["train", "val"]),
        ({"train": "train", "test": "test"}, ["train", "test"]),
        ({"train": "train"}, ["train"]),
        ({"train": "training", "val": "validation", "test": "testing"}, ["train", "val", "test"]),
        ({"train": "Train", "val": "valid", "test": "Test"}, ["train", "val", "test"]),
    ],
)
def test_split_folders_by_their_usual_names(tmp_path: Path, folders: dict[str, str], splits: list[str]) -> None:
    for number, (split, folder) in enumerate(folders.items()):
        for label, kind in enumerate(("a", "b")):
            picture(tmp_path / "data" / folder / kind / f"{split}.png", (number, label, 7))
    found = open_folder(tmp_path / "data", skip_bad=False)
    assert list(found.splits) == splits
    for number, split in enumerate(folders):
        source = found.splits[split]
        assert source.labels.tolist() == [0, 1]
        assert [pixel(source.read(i)) for i in range(2)] == [(number, 0, 7), (number, 1, 7)]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    found = open_folder(tree(tmp_path / "data", "bus", "train", "tram"), skip_bad=False)
    assert found.classes == ["bus", "train", "tram"]
    assert list(found.splits) == ["all"]


def test_linked_folders_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    tree(tmp_path / "else", "more")
    (data / "a" / "linked").symlink_to(tmp_path / "else" / "more")
    (data / "a" / "loop").symlink_to(data / "a")
    assert open_folder(data, skip_bad=False).splits["all"].labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_folders_may_lie_in_each_other_deeper_than_python_recurses(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    deep = data / "a"
    for _ in range(1200):
        deep = deep / "d"
        deep.mkdir()
    (data / "a" / "0.png").rename(deep / "0.png")
    try:
        assert open_folder(data, skip_bad=False).splits["all"].labels.tolist() == [0, 0, 1, 1]
    finally:
        # What removes the tests' folders recurses.
        (deep / "0.png").unlink()
        while deep != data / "a":
            deep.rmdir()
            deep = deep.parent


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["only"], r"found 1 class folder\(s\), at least 2 are needed"),
        (["train/a", "train/b", "test/a", "test/b", "test/c"], r"test/c: a class that training does not have.*a, b"),
        (["train/a", "train/b", "val/a"], r"val/b: no images of this class"),
        (["train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b"], r"both val/ and valid/ are its val split"),
        (["train/a", "train/b", "test"], r"test: holds no class folders"),
    ],
)
def test_trees_that_make_no_sense_are_refused(tmp_path: Path, parts: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_folder(tree(tmp_path / "data", *parts), skip_bad=False)


def test_empty_class_and_missing_folder_are_refused(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    (data / "c").mkdir()
    with pytest.raises(UsageError, match=r"data/c: no images of this class\. Add some \(\.avif, \.bmp"):
        open_folder(data, skip_bad=False)
    with pytest.raises(UsageError, match=r"nothing: cannot be listed \(No such file or directory\)"):
        open_folder(tmp_path / "nothing", skip_bad=False)


# --- images that cannot be read ---


def damaged(root: Path) -> Path:
    """A folder in which `a/bad.png` is no image and `b/cut.png` ends early, behind a good header."""
    data = tree(root / "data", "a", "b")
    (data / "a" / "bad.png").write_bytes(b"no image at all")
    whole = picture(data / "b" / "cut.png", size=(64, 64))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    whole.write_bytes(whole.read_bytes()[:3000])
    return data


def test_unreadable_images_are_named_with_a_way_out(tmp_path: Path) -> None:
    data = damaged(tmp_path)
    with pytest.raises(UsageError) as raised:
        open_folder(data, skip_bad=False)
    first, second = str(raised.value).splitlines()
    assert first == (
        f"{data}/a/bad.png: not a readable image (no image format that Pillow knows). "
        "Remove or replace it, or leave such images out: --skip-bad-images."
    )
    assert second.startswith(f"{data}/b/cut.png: not a readable image (image file is truncated")


def test_many_unreadable_images_are_counted(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    for number in range(8):
        (data / "a" / f"bad{number}.png").write_bytes(b"")
    with pytest.raises(UsageError, match="3 more images cannot be read") as raised:
        open_folder(data, skip_bad=False)
    assert str(raised.value).count("not a readable image") == 5


def test_bad_images_are_left_out_and_listed(tmp_path: Path) -> None:
    data = damaged(tmp_path)
    for _ in range(2):
        found = open_folder(data, skip_bad=True)
        source = found.splits["all"]
        assert source.labels.tolist() == [0, 0, 1, 1]
        assert [os.path.basename(source.name(i)) for i in range(4)] == ["0.png", "1.png"] * 2
        assert len(found.skipped) == 2
        assert found.skipped[0] == f"{data}/a/bad.png: no image format that Pillow knows"
        assert found.skipped[1].startswith(f"{data}/b/cut.png: ")


def test_bad_images_are_left_out_of_the_split_that_they_are_in(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "train/a", "train/b", "test/a", "test/b")
    (data / "test" / "a" / "0.png").write_bytes(b"")
    found = open_folder(data, skip_bad=True)
    assert found.splits["train"].labels.tolist() == [0, 0, 1, 1]
    assert found.splits["test"].labels.tolist() == [0, 1, 1]
    assert found.splits["test"].name(0) == str(data / "test" / "a" / "1.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif"])
def test_files_cut_short_are_found_at_the_start_by_their_ends(tmp_path: Path, suffix: str) -> None:
    data = tree(tmp_path / "data", "a", "b")
    path = data / "b" / f"x.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 20)
    assert len(open_folder(data, skip_bad=False).splits["all"]) == 5, "cameras put something behind the picture"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=rf"b/x\.{suffix}: not a readable image"):
        open_folder(data, skip_bad=False)


def test_a_header_and_an_end_that_are_good_are_no_proof_of_the_rest(tmp_path: Path) -> None:
    data = damaged(tmp_path)
    (data / "a" / "bad.png").unlink()
    path = picture(data / "b" / "cut.png", size=(64, 64))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000] + bytes(100) + whole[3100:])
    source = open_folder(data, skip_bad=False).splits["all"]
    assert len(source) == 5
    with pytest.raises(UsageError, match=r"b/cut\.png: not a readable image \(.*--skip-bad-images"):
        source.read(4)
    assert len(open_folder(data, skip_bad=True).splits["all"]) == 4


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    source = open_folder(data, skip_bad=False).splits["all"]
    (data / "a" / "0.png").unlink()
    os.mkfifo(data / "a" / "0.png")
    with pytest.raises(UsageError, match=r"a/0\.png: not a readable image \(no file, but a .*named pipe"):
        open_folder(data, skip_bad=False)
    with pytest.raises(UsageError, match=r"a/0\.png: not a readable image \(no file"):
        source.read(0)
    assert len(open_folder(data, skip_bad=True).splits["all"]) == 3
    (data / "a" / "more.jpg").mkdir()
    picture(data / "a" / "more.jpg" / "y.png")
    assert len(open_folder(data, skip_bad=True).splits["all"]) == 4, "a folder is one, whatever its name"


def test_a_class_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    for path in (data / "b").iterdir():
        path.write_bytes(b"?")
    with pytest.raises(UsageError, match=r"data/b: none of its images can be read"):
        open_folder(data, skip_bad=True)
    for path in (data / "a").iterdir():
        path.write_bytes(b"?")
    with pytest.raises(UsageError, match=r"data: none of its images can be read"):
        open_folder(data, skip_bad=True)


def test_links_to_nothing_and_vanished_files_are_named(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    source = open_folder(data, skip_bad=False).splits["all"]
    (data / "a" / "0.png").unlink()
    with pytest.raises(UsageError, match=r"a/0\.png: not a readable image \(No such file or directory\)"):
        source.read(0)
    (data / "a" / "0.png").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"a/0\.png: not a readable image \(No such file or directory\)"):
        open_folder(data, skip_bad=False)


# --- the index ---


def test_second_start_opens_no_file(tmp_path: Path, opened: list[str]) -> None:
    data = tree(tmp_path / "data", "a", "b")
    picture(data / "a" / "wide.png", size=(9, 2))
    first = open_folder(data, skip_bad=False).splits["all"]
    assert sorted(opened) == ["0.png", "0.png", "1.png", "1.png", "wide.png"]
    opened.clear()
    second = open_folder(data, skip_bad=False).splits["all"]
    assert opened == []
    assert [second.name(i) for i in range(5)] == [first.name(i) for i in range(5)]
    assert second.size is None


def test_whole_images_are_checked_once(tmp_path: Path, opened: list[str]) -> None:
    data = tree(tmp_path / "data", "a", "b")
    for skip_bad, expected in ((False, 4), (True, 4), (True, 0), (False, 0)):
        opened.clear()
        open_folder(data, skip_bad=skip_bad)
        assert len(opened) == expected


def test_only_new_and_changed_files_are_inspected(tmp_path: Path, opened: list[str]) -> None:
    data = tree(tmp_path / "data", "a", "b", count=3)
    open_folder(data, skip_bad=False)
    opened.clear()
    picture(data / "a" / "new.png")
    (data / "a" / "0.png").unlink()
    picture(data / "b" / "2.png", size=(50, 40))
    changed = data / "b" / "1.png"
    # The same size in bytes, another time.
    before = changed.stat()
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    found = open_folder(data, skip_bad=False).splits["all"]
    assert sorted(opened) == ["1.png", "2.png", "new.png"]
    assert [os.path.basename(found.name(i)) for i in range(6)] == [
        *("1.png", "2.png", "new.png"),
        *("0.png", "1.png", "2.png"),
    ]
    assert found.size is None


def test_a_new_file_with_the_stamp_of_another_is_new(tmp_path: Path, opened: list[str]) -> None:
    data = tree(tmp_path / "data", "a", "b")
    open_folder(data, skip_bad=False)
    opened.clear()
    os.link(data / "b" / "1.png", data / "a" / "new.png")
    open_folder(data, skip_bad=False)
    assert opened == ["new.png"]


def test_a_file_that_goes_bad_is_noticed_and_one_that_is_mended_too(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    open_folder(data, skip_bad=False)
    good = (data / "a" / "1.png").read_bytes()
    before = (data / "a" / "1.png").stat()
    (data / "a" / "1.png").write_bytes(b"x" * len(good))
    with pytest.raises(UsageError, match=r"a/1\.png: not a readable image"):
        open_folder(data, skip_bad=False)
    (data / "a" / "1.png").write_bytes(good)
    os.utime(data / "a" / "1.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(open_folder(data, skip_bad=False).splits["all"]) == 4


def cache_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "root" / "index").iterdir()
    return file


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nothing", None])
def test_a_damaged_index_does_not_matter(tmp_path: Path, content: bytes | None, opened: list[str]) -> None:
    data = tree(tmp_path / "data", "a", "b")
    open_folder(data, skip_bad=False)
    file = cache_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-60] if content is None else content)
    opened.clear()
    assert open_folder(data, skip_bad=False).splits["all"].size == (3, 4)
    assert len(opened) == 4
    opened.clear()
    open_folder(data, skip_bad=False)
    assert opened == []


def test_an_index_of_other_arrays_does_not_matter(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b")
    open_folder(data, skip_bad=False)
    with np.load(cache_file(tmp_path)) as kept:
        arrays = dict(kept)
    for change in ({"sizes": arrays["sizes"][:2]}, {"paths": np.array([{}], dtype=object)}):
        np.savez(cache_file(tmp_path), **{**arrays, **change})
        assert open_folder(data, skip_bad=False).splits["all"].size == (3, 4)


def test_an_index_that_cannot_be_written_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tree(tmp_path / "data", "a", "b")
    (tmp_path / "root").write_text("a file where the folder should be")
    assert len(open_folder(data, skip_bad=False).splits["all"]) == 4
    (tmp_path / "root").unlink()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.np, "savez", full)
    assert len(open_folder(data, skip_bad=False).splits["all"]) == 4
    assert list((tmp_path / "root" / "index").iterdir()) == []


def test_each_folder_has_an_index_of_its_own(tmp_path: Path, opened: list[str]) -> None:
    for name in ("one", "two"):
        open_folder(tree(tmp_path / name, "a", "b"), skip_bad=False)
    opened.clear()
    for name in ("one", "two"):
        open_folder(tmp_path / name, skip_bad=False)
    assert opened == []
    assert len(list((tmp_path / "root" / "index").iterdir())) == 2


# --- what workers get ---


def test_sources_travel_to_other_processes(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "a", "b", count=50)
    source = open_folder(data, skip_bad=False).splits["all"]
    sent = pickle.loads(pickle.dumps(source))
    assert sent.name(99) == str(data / "b" / "9.png")
    assert pixel(sent.read(99)) == (9, 1, 0)
    shutil.rmtree(data)
    with pytest.raises(UsageError, match="No such file"):
        sent.read(0)


def test_names_hold_no_object_for_each_path() -> None:
    names = Names(f"class/{number}.png" for number in range(1000))
    assert not [v for v in vars(names).values() if not isinstance(v, np.ndarray)]
    assert [names[0], names[-1], len(names)] == ["class/0.png", "class/999.png", 1000]
    assert list(Names(["ä/\udcff.png", ""])) == ["ä/\udcff.png", ""]
    with pytest.raises(IndexError):
        names[1000]
