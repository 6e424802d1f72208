"""Files that are whole or absent, and what is told when they cannot be written; the limit on the size of files stands
for a full disk."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.train.limits import at_most
from tests.train.small_runs import assert_same_run, small

from augury.errors import AuguryError, RunError
from augury_train.files import WriteError, append_line, cannot_write, folder_inside, replacing, write_text
from augury_train.training.trainer import resume, train

NOISE = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))


def torch_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"noise": NOISE}, file)


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("x" * 40_000),
    "torch": torch_file,
    "safetensors": lambda path: save_file({"noise": NOISE}, path),
    "picture": lambda path: Image.fromarray((255 * NOISE.repeat(2, 2)).byte().numpy()).save(path, "PNG"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_cannot_be_written_whole_leaves_the_one_before(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with at_most(8192), pytest.raises(WriteError) as caught, replacing(path) as partial:
        WRITERS[kind](partial)
    # What a process is told by another must not lose its words.
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error, RunError | OSError)
        assert (
            str(error)
            == f"{path}: cannot be written: File too large. Raise the limit on the size of files (ulimit -f)."
        )
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "before")]
    with replacing(path) as partial:
        WRITERS[kind](partial)
    assert path.stat().st_size > 8192
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
def test_who_may_read_a_file_is_the_umasks_business(kind: str, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "file") as partial:
            WRITERS[kind](partial)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def _half_written(path: Path, error: BaseException) -> None:
    with replacing(path) as partial:
        partial.write_text("half")
        raise error


def test_other_errors_in_the_block_stay_what_they_are(tmp_path: Path) -> None:
    for error in (RuntimeError("out of memory"), KeyboardInterrupt(), AuguryError("told"), ValueError("(os error)")):
        with pytest.raises(type(error)) as caught:
            _half_written(tmp_path / "file", error)
        assert caught.value is error
    with pytest.raises(FileNotFoundError, match="nothing"), replacing(tmp_path / "file") as partial:
        shutil.copyfile(tmp_path / "nothing", partial)
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(("disk", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def replaced(old: Path, new: Path) -> None:
        done.append(("name", new.name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    write_text(tmp_path / "file", "x")
    assert done == [("disk", "file.partial"), ("name", "file"), ("disk", tmp_path.name)]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("one\n")
    append_line(path, "two")
    with at_most(10), pytest.raises(WriteError, match="lines: cannot be written: File too large"):
        append_line(path, "three")
    assert path.read_text() == "one\ntwo\n"
    append_line(path, "thrée")
    assert path.read_text(encoding="utf-8") == "one\ntwo\nthrée\n"
    path.unlink()
    with pytest.raises(WriteError, match="lines: cannot be written: it is no longer there"):
        append_line(path, "four")


def test_folders_are_made_inside_one_that_is_there(tmp_path: Path) -> None:
    assert folder_inside(tmp_path, "a", "b") == folder_inside(tmp_path, "a", "b") == tmp_path / "a" / "b"
    with pytest.raises(WriteError, match=rf"gone/a: cannot be written: {tmp_path}/gone is no longer there\. Bring it"):
        folder_inside(tmp_path / "gone", "a", "b")
    assert not (tmp_path / "gone").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file: cannot be written: File exists. Move what is in its place elsewhere"):
        folder_inside(tmp_path, "file")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (28, "No space left on device. Free some space."),
        (122, "Disk quota exceeded. Free some space."),
        (13, "Permission denied. Make its folder writable."),
        (30, "Read-only file system. Make its folder writable."),
        (5, "Input/output error. See to the disk."),
    ],
)
def test_each_reason_has_its_remedy(number: int, remedy: str, tmp_path: Path) -> None:
    error = cannot_write(tmp_path / "x", OSError(number, os.strerror(number)))
    assert str(error) == f"{tmp_path}/x: cannot be written: {remedy}"
    assert (error.errno, error.strerror, error.filename) == (number, os.strerror(number), str(tmp_path / "x"))


@pytest.mark.slow
def test_a_run_whose_checkpoint_does_not_fit_goes_on_from_the_one_before(tmp_path: Path) -> None:
    config = small("isda", optim={"epochs": 3})
    train(config, tmp_path / "whole")
    sizes = sorted(file.stat().st_size for file in (tmp_path / "whole" / "checkpoints").iterdir())
    folder = tmp_path / "run"
    # The first checkpoint has no momentum yet.
    with at_most(sizes[0] - 2000), pytest.raises(RunError) as caught:
        train(config, folder)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{folder}/checkpoints/step-")
    assert second == f"Once that is mended, go on with: augury resume {folder}"
    assert len(list((folder / "checkpoints").iterdir())) == 1
    assert not list(folder.rglob("*.partial"))
    resume(folder)
    assert_same_run(tmp_path / "whole", folder)
