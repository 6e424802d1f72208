"""A limit of open files that is too low: told with its value and what to do, by whatever meets it first."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from augury.errors import UsageError
from augury_train.data.decoding import decode_rgb
from augury_train.open_files import TooManyOpenFiles, too_many_open_files

AUGURY = str(Path(sys.executable).with_name("augury"))
LIMIT = 240
"""Seconds after which a process hangs."""
TOLD = "the limit of open files is too low: this process may have {} open at once (ulimit -n)"
WAY = "Raise it first (ulimit -n 4096, in a new shell or by whoever administers this machine)"

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets the limits of other processes")


def limited(limit: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command under a limit of open files."""
    command = ["sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh", AUGURY, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=LIMIT
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    for number in range(120):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def words(images: Path, folder: Path, *settings: str) -> list[str]:
    said = "optim.batch_size=16", "device=cpu", *settings
    sets = [part for setting in said for part in ("--set", setting)]
    return ["run", "--dataset", str(images), "--model", "resnet20_cifar", *sets, "--output", str(folder)]


@pytest.mark.parametrize(
    ("command", "limit"),
    [("run", 20), ("run", 32), ("run", 63), ("compare", 24), ("predict", 24), ("evaluate", 24)],
)
def test_no_command_begins_with_too_low_a_limit(command: str, limit: int, tmp_path: Path) -> None:
    more = {"predict": ["RUN", "images"], "evaluate": ["RUN"]}.get(command, ["--output", str(tmp_path / "run")])
    done = limited(limit, command, *more)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{TOLD.format(limit)}, and augury needs 64. {WAY}.\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["memory", "stream"])
def test_the_least_limit_is_enough_for_a_run_and_its_prediction(loader: str, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = limited(64, *words(images, folder, "optim.epochs=2", f"data.loader={loader}", "data.workers=2"))
    assert done.returncode == 0, done.stderr
    done = limited(64, "predict", str(folder), str(images))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_more_processes_than_files_are_told(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = limited(64, *words(images, folder, "optim.epochs=2", "data.loader=stream", "data.workers=8"))
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-2:] == [
        f"{TOLD.format(64)}. {WAY}, or lower data.workers.",
        f"Once that is mended, go on with: augury resume {folder}",
    ]
    assert "Traceback" not in done.stderr


@linux
@pytest.mark.slow
@pytest.mark.parametrize("limit", [3, 12, 24, 30])
def test_a_limit_that_is_reached_in_a_run_is_told(limit: int, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [AUGURY, *words(images, folder, "optim.epochs=5000", "data.loader=stream", "data.workers=2")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        until = time.monotonic() + LIMIT
        while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE, (limit, limit))
        _, told = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 1, told
    assert "Traceback" not in told
    assert told.splitlines()[-2:] == [
        f"{TOLD.format(limit)}. {WAY}, or lower data.workers.",
        f"Once that is mended, go on with: augury resume {folder}",
    ]


# What tells of it, and what does not.


def caught(error: Exception, then: Exception) -> Exception:
    """Another error, raised while this one was handled."""
    try:
        try:
            raise error
        except Exception:
            raise then from None
    except Exception as raised:
        return raised


MANY = OSError(errno.EMFILE, "Too many open files", "a.png")


@pytest.mark.parametrize(
    "error",
    [
        MANY,
        caught(MANY, UsageError("a.png: cannot be listed")),
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)"),
        RuntimeError("received 0 items of ancdata"),
        OSError("Caught OSError in DataLoader worker process 0. [Errno 24] Too many open files: 'a.png'"),
    ],
)
def test_it_is_known_by_whatever_tells_of_it(error: Exception) -> None:
    told = too_many_open_files(error)
    assert told is not None
    assert str(told).startswith("the limit of open files is too low: this process may have ")


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file", "a.png"), RuntimeError("received a signal")])
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert too_many_open_files(error) is None


def test_the_limit_of_the_whole_system_is_another() -> None:
    told = too_many_open_files(OSError(errno.ENFILE, "Too many open files in system"))
    assert str(told) == (
        "the whole system has as many files open as it can (fs.file-max). End other programs, or lower data.workers."
    )


def test_an_image_is_not_called_unreadable_for_it(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: Path) -> None:
        raise OSError(errno.EMFILE, "Too many open files", str(file))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(TooManyOpenFiles):
        decode_rgb(images / "a" / "0.png")
