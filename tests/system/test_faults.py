"""What breaks beside the program, caused for real: a full disk, a folder that goes or may not be written, a process
that reads images. Each ends in a line or two, loses nothing that was written, and the run goes on afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.train.small_runs import assert_same_run

AUGURY = str(Path(sys.executable).with_name("augury"))
SETTINGS = "data.images_per_class=10", "optim.batch_size=25", "optim.epochs=3", "device=cpu"
WAY_ON = "\nOnce that is mended, go on with: augury resume {run}\n"


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def train_command(folder: Path, *more: str) -> list[str]:
    """A run of three epochs, of methods with all the state there is."""
    return [AUGURY, "run", *sets(*SETTINGS), "--with", "dcutmix", "--with", "isda", "--output", str(folder), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command to its end, with nothing on its standard error but what is meant for people."""
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception" not in done.stderr, done.stderr
    return done


def told(done: subprocess.CompletedProcess[str]) -> str:
    """The end of what a command said: its last line, and the one before where that is none of an epoch."""
    lines = done.stderr.splitlines(keepends=True)[-2:]
    return "".join(line for line in lines if not re.match(r"epoch +\d|(data|classes|model|methods) ", line))


def whole_files(folder: Path) -> None:
    """Nothing is left half written."""
    assert not list(folder.rglob("*.partial"))
    rows = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
    assert all(json.loads(line) for line in rows.splitlines())
    assert rows == "" or rows.endswith("\n")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(train_command(folder)).returncode == 0
    return folder


def mounting() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


can_mount = pytest.mark.skipif(not mounting(), reason="no file systems can be mounted here")


def on_a_disk(place: Path, options: str, script: str) -> list[str]:
    """A command that runs a shell script with a small file system of its own at `place`, gone when it ends."""
    place.mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o {options} tmpfs {place}"
    return ["unshare", "-rm", "sh", "-c", f"set -e; {mount}; set +e; {script}"]


def quoted(command: list[str]) -> str:
    return subprocess.list2cmdline(command)


# --- a full disk ---


@can_mount
@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 1400, 3000])
def test_a_full_disk_costs_nothing_that_was_written(size: int, undisturbed: Path, tmp_path: Path) -> None:
    place, kept = tmp_path / "small", tmp_path / "run"
    folder = place / "run"
    script = f"{quoted(train_command(folder))}; code=$?; cp -a {folder} {kept}; exit $code"
    done = run(on_a_disk(place, f"size={size}k", script))
    assert done.returncode == 1, done.stderr
    why = f"{re.escape(str(folder))}/\\S+: cannot be written: No space left on device. Free some space."
    way = WAY_ON.format(run=folder) if (kept / "config.json").exists() else ""
    assert re.search(rf"^{why}{re.escape(way)}$", done.stderr, re.MULTILINE), done.stderr
    whole_files(kept)
    # There is room again.
    assert run([AUGURY, "resume", str(kept)]).returncode == 0
    assert_same_run(undisturbed, kept)


# --- a folder that goes, or may not be written ---


def started(command: list[str], ready: Callable[[], bool]) -> subprocess.Popen[str]:
    """A command at work, in a group of processes of its own, once something is `ready`."""
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """What it said to its end; of its group, nobody is left soon after."""
    error = process.communicate(timeout=240)[1]
    assert "Traceback" not in error, error
    deadline = time.monotonic() + 240
    while alone(process.pid):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.1)
    return subprocess.CompletedProcess(process.args, process.returncode, "", error)


def alone(group: int) -> bool:
    """Whether somebody of a group of processes is still there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def rows(folder: Path) -> int:
    """Epochs that are done."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


LOST = "{}: the run's folder was {} while the run trained, so it ends here. Bring the folder back, or start anew."


def away(folder: Path) -> None:
    """Remove a folder at once, whatever is being written in it."""
    shutil.rmtree(folder.rename(folder.with_name("away")))


def by_a_file(folder: Path) -> None:
    away(folder)
    folder.write_text("a file\n")


def by_an_empty_one(folder: Path) -> None:
    away(folder)
    folder.mkdir()


EMPTIED = "replaced, or emptied (config.json is no longer there)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "lose", "what"),
    [
        ("run", away, "removed"),
        ("run", by_a_file, "replaced by a file"),
        ("run", by_an_empty_one, EMPTIED),
        ("resume", by_an_empty_one, EMPTIED),
        ("compare", by_an_empty_one, EMPTIED),
    ],
)
def test_a_run_whose_folder_is_lost_says_so(
    command: str, lose: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    if command == "compare":
        folder = tmp_path / "suite" / "isda" / "seed-0"
        words = [AUGURY, "compare", *sets(*SETTINGS), "--with-each", "isda", "--seeds", "1", "--output"]
        process = started([*words, str(tmp_path / "suite"), *sets("optim.epochs=60")], lambda: rows(folder) > 0)
    else:
        folder = tmp_path / "run"
        process = started(train_command(folder, *sets("optim.epochs=5000")), lambda: rows(folder) > 0)
        if command == "resume":
            process.send_signal(signal.SIGTERM)
            assert ended(process).returncode == 143
            before = rows(folder)
            process = started([AUGURY, "resume", str(folder)], lambda: rows(folder) > before)
    # It sees what became of the folder, not what lies between.
    process.send_signal(signal.SIGSTOP)
    lose(folder)
    process.send_signal(signal.SIGCONT)
    done = ended(process)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(LOST.format(folder, what)), done.stderr
    if folder.is_dir():
        assert not list(folder.iterdir()), "nothing is written into another folder"


@pytest.mark.slow
def test_parts_of_a_folder_that_are_lost_are_told_and_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(train_command(folder, *sets("optim.epochs=5000")), lambda: rows(folder) > 0)
    away(folder / "checkpoints")
    away(folder / "tensorboard")
    before = rows(folder)
    while rows(folder) < before + 3:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    done = ended(process)
    assert done.returncode == 143
    assert done.stderr.count(f"{folder}/checkpoints: removed while the run trained. It is made anew") == 1
    assert done.stderr.count(f"tensorboard failed (FileNotFoundError: {folder}/tensorboard was removed)") == 1
    assert len(list((folder / "checkpoints").glob("step-*.pt"))) == 2


@pytest.mark.slow
def test_checkpoints_that_are_replaced_by_a_file_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(train_command(folder, *sets("optim.epochs=5000")), lambda: rows(folder) > 0)
    process.send_signal(signal.SIGSTOP)
    by_a_file(folder / "checkpoints")
    process.send_signal(signal.SIGCONT)
    done = ended(process)
    assert done.returncode == 1
    why, way_on = done.stderr.splitlines()[-2:]
    # Whether it was about to open the folder or a file in it.
    assert re.fullmatch(rf"{folder}/checkpoints\S*: cannot be written: (File exists|Not a directory)\. Move .*\.", why)
    assert way_on == f"Once that is mended, go on with: augury resume {folder}"


@can_mount
@pytest.mark.slow
def test_folders_that_may_not_be_written_are_named(tmp_path: Path) -> None:
    place, folder = tmp_path / "read_only", tmp_path / "run"
    done = run(on_a_disk(place, "ro", quoted(train_command(place / "run"))))
    assert done.returncode == 2
    assert told(done) == f"{place}/run: cannot be made (Read-only file system). Choose another --output.\n"
    assert run(train_command(folder, *sets("train.trackers=[]", "optim.epochs=1"))).returncode == 0
    (folder / "result.json").unlink()
    script = (
        f"mount --bind {folder} {place} && mount -o remount,ro,bind {place}; {quoted([AUGURY, 'resume', str(place)])}"
    )
    done = run(on_a_disk(place, "size=1m", script))
    assert done.returncode == 1
    assert re.search(
        rf"^{place}/\S+: cannot be written: Read-only file system. Make its folder writable.$", done.stderr, re.M
    )


# --- the processes that read images ---


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 small photographs of noise."""
    root, drawn = tmp_path_factory.mktemp("pets"), np.random.default_rng(3)
    for number in range(200):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def stream_command(folder: Path, images: Path, epochs: int) -> list[str]:
    settings = "data.loader=stream", "data.workers=2", f"optim.epochs={epochs}", "optim.batch_size=16", "device=cpu"
    command = [AUGURY, "run", "--dataset", str(images), "--model", "resnet20_cifar", "--output", str(folder)]
    return [*command, *sets(*settings, "train.trackers=[]")]


def readers(process: subprocess.Popen[str]) -> list[int]:
    """The children of a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
def test_a_killed_reader_is_told_and_the_run_goes_on(pets: Path, tmp_path: Path) -> None:
    assert run(stream_command(tmp_path / "whole", pets, 4)).returncode == 0
    folder = tmp_path / "run"
    process = started(stream_command(folder, pets, 4), lambda: rows(folder) > 0)
    os.kill(readers(process)[0], signal.SIGKILL)
    done = ended(process)
    assert done.returncode == 1
    assert told(done) == (
        "data: a process that reads images was killed (SIGKILL), for want of memory perhaps. Make room for it, or read "
        "in fewer processes than 2: data.workers in the run's config.json, which changes no result."
        + WAY_ON.format(run=folder)
    )
    settings = json.loads((folder / "config.json").read_text())
    settings["data"]["workers"] = 1
    (folder / "config.json").write_text(json.dumps(settings))
    assert run([AUGURY, "resume", str(folder)]).returncode == 0
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_reaches_all_processes_and_leaves_none_and_no_traceback(times: int, pets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = started(stream_command(folder, pets, 500), lambda: rows(folder) > 0)
    for number in range(times):
        time.sleep(0.7 * number)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
    done = ended(process)
    # The second one may come when Python is about to end, and then ends it as the system does: 130 for a shell, too.
    assert done.returncode in ((130,) if times == 1 else (130, -signal.SIGINT))
    assert re.search(
        r"(what was done is kept|the newest checkpoint counts)\. Go on with: augury resume .*\n$", done.stderr
    )


READ = """
import torch
from augury_train.config import DataConfig
from augury_train.data.datasets import open_dataset
from augury_train.data.splits import Split, Splits
from augury_train.data.stream import StreamFeed
from augury_train.data.view import DataSet, ImageFormat

split = Split(open_dataset(DataConfig(dataset={images!r})).splits["all"], torch.arange(200))
data = DataSet(Splits(split, None, split), ["a", "b"], ImageFormat(3, 20, 20, "bicubic", (0.5,) * 3, (0.25,) * 3), [])
list(StreamFeed(data, torch.device("cpu"), 2).held_out(split, 64))
"""


@can_mount
@pytest.mark.slow
def test_shared_memory_without_room_is_told_and_not_waited_for(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "read.py").write_text(READ.format(images=str(pets)))
    script = f"mount -t tmpfs -o size=80k tmpfs /dev/shm; timeout 200 {sys.executable} {tmp_path}/read.py"
    command = on_a_disk(tmp_path / "unused", "size=4k", script)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    assert done.returncode == 1, done.stderr
    assert "RunError: data: no room for a batch of 0.1 MiB in shared memory (/dev/shm; in a container" in done.stderr


# --- images that go bad while a run is at work ---


@pytest.mark.slow
def test_an_image_that_goes_bad_is_named_and_the_run_goes_on_once_it_is_mended(pets: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(pets, images)
    assert run(stream_command(tmp_path / "whole", images, 3)).returncode == 0
    folder, image = tmp_path / "run", images / "a" / "100.png"
    process = started(stream_command(folder, images, 3), lambda: (folder / "metrics.jsonl").exists())
    good = image.read_bytes()
    image.write_bytes(good[:200])
    done = ended(process)
    assert done.returncode == 1
    first, _, second = told(done).partition("\n")
    assert re.fullmatch(rf"{image}: not a readable image \(.*\). Put a readable one in its place.", first)
    assert f"\n{second}" == WAY_ON.format(run=folder)
    image.write_bytes(good)
    assert run([AUGURY, "resume", str(folder)]).returncode == 0
    assert_same_run(tmp_path / "whole", folder)
