"""A run that is told to stop: a checkpoint at the next step, exit code 130 or 143, nothing left running."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from tests.train.small_runs import StopsAfter, assert_same_run, small

from augury_train.training.checkpoint import checkpoints
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, resume, train
from augury_train.training.watch import AT_ONCE, Interrupted, StopRequest

AUGURY = str(Path(sys.executable).with_name("augury"))
SIGNALS = (signal.SIGINT, signal.SIGTERM)
LIMIT = 240
"""Seconds after which a process hangs."""


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `augury` with arguments, in a session of its own; whatever is left of it at the end is killed."""
    processes = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [AUGURY, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def trained(folder: Path) -> bool:
    path = folder / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_one_signal_keeps_what_was_done(
    number: signal.Signals, started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = "data.loader=stream", "data.workers=2", "data.images_per_class=30", "optim.epochs=500", "device=cpu"
    process = started("run", *(part for s in settings for part in ("--set", s)), "--output", str(folder))
    until(lambda: trained(folder), process)
    workers = psutil.Process(process.pid).children(recursive=True)
    # As a terminal and a scheduler do: to all processes of the group.
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number
    assert told.splitlines()[-1] == f"interrupted; what was done is kept. Go on with: augury resume {folder}"
    assert "Traceback" not in told
    assert "ignored" not in told
    assert len(checkpoints(folder)) == 2
    assert not psutil.wait_procs(workers, timeout=LIMIT)[1], "nothing is left running"


def in_a_long_step(started: Callable[..., subprocess.Popen[str]], folder: Path) -> subprocess.Popen[str]:
    """A run that is in a step of tens of seconds."""
    settings = "model.name=wrn28_10_cifar", "optim.batch_size=900", "device=cpu"
    process = started("run", *(part for s in settings for part in ("--set", s)), "--output", str(folder))
    until(lambda: bool(checkpoints(folder)), process)
    time.sleep(1)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_one_ends_it_at_once(
    number: signal.Signals, started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = in_a_long_step(started, tmp_path / "run")
    process.send_signal(number)
    time.sleep(4 * AT_ONCE)
    process.send_signal(number)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + number
    assert "ended at once, so the newest checkpoint counts" in told


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_not_waited_for(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = in_a_long_step(started, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 143
    assert "no step ended in time, so the newest checkpoint counts" in told


@pytest.mark.slow
def test_before_training_there_is_nothing_to_keep(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started("run", "--set", "device=cpu", "--output", str(tmp_path / "run"))
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 143
    assert "Traceback" not in told


# One process of the run alone, as a guard against running out of memory asks it.


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 120 small images of noise, in two classes."""
    root, drawn = tmp_path_factory.mktemp("images"), np.random.default_rng(3)
    for number in range(120):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(drawn.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


def streaming(start: Callable[..., subprocess.Popen[str]], images: Path, folder: Path) -> subprocess.Popen[str]:
    """A run that reads images in two processes, and has done an epoch of more than it will come to."""
    settings = "data.loader=stream", "data.workers=2", "optim.epochs=5000", "optim.batch_size=16", "device=cpu"
    sets = [part for setting in (*settings, "train.trackers=[]") for part in ("--set", setting)]
    process = start("run", "--dataset", str(images), "--model", "resnet20_cifar", *sets, "--output", str(folder))
    until(lambda: trained(folder), process)
    return process


def training_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The two processes that read training images: they are there from the first epoch to the last."""
    return sorted(psutil.Process(process.pid).children(), key=lambda child: (child.create_time(), child.pid))[:2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "why"),
    [
        (signal.SIGTERM, "was ended (SIGTERM) while the run was not asked to stop: by a guard against running out of "
                         "memory (earlyoom, systemd-oomd) perhaps."),
        (signal.SIGKILL, "was killed (SIGKILL), for want of memory perhaps."),
    ],
)  # fmt: skip
def test_a_signal_to_a_worker_is_told_as_its_end(
    number: signal.Signals, why: str, images: Path, started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = streaming(started, images, folder)
    training_workers(process)[0].send_signal(number)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, told
    said = [line for line in told.splitlines() if not line.startswith(("epoch", "reading"))]
    assert said[-2:] == [
        f"data: a process that reads images {why} Make room for it, or read in fewer processes than 2: data.workers in "
        "the run's config.json, which changes no result.",
        f"Once that is mended, go on with: augury resume {folder}",
    ]
    assert checkpoints(folder)


@pytest.mark.slow
def test_ctrl_c_to_a_worker_ends_nothing(
    images: Path, started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = streaming(started, images, folder)
    training_workers(process)[0].send_signal(signal.SIGINT)
    before = (folder / "metrics.jsonl").stat().st_size
    until(lambda: (folder / "metrics.jsonl").stat().st_size > 2 * before, process)
    # The run itself still hears that it is to stop.
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 143
    assert told.splitlines()[-1] == f"interrupted; what was done is kept. Go on with: augury resume {folder}"
    assert checkpoints(folder)


@pytest.mark.slow
def test_sigterm_to_a_process_of_a_comparison_is_told_as_that(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    settings = "optim.epochs=5000", "optim.batch_size=26", "data.images_per_class=10", "device=cpu", "train.trackers=[]"
    sets = [part for setting in settings for part in ("--set", setting)]
    suite = tmp_path / "suite"
    process = started("compare", "--with-each", "isda", "--seeds", "1", "--jobs", "2", *sets, "--output", str(suite))
    folders = [suite / name / "seed-0" for name in ("baseline", "isda")]
    until(lambda: all(map(trained, folders)), process)
    runs = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    runs[0].send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, told
    first, second = told.splitlines()[-2:]
    assert re.match(r"(baseline|isda).*: its process was asked to end \(SIGTERM\) while the comparison was not", first)
    assert second == "Go on with the same command, and fewer --jobs than 2 where memory is short."
    assert all(map(checkpoints, folders))


# Without a run: a process of its own, since what is asked is whether it ends.

PROGRAM = """
import os, signal, sys, threading, time
from augury_train.training.watch import StopRequest
StopRequest.limit = 0.3

def child(work):
    number = os.fork()
    if number == 0:
        work()
        os._exit(0)
    os.waitpid(number, 0)

def heard():
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.kill(os.getpid(), signal.SIGTERM)
"""
HEALTHY = {
    "a signal to a forked process": "with StopRequest(): child(heard); time.sleep(1)",
    "a number that another process writes": """
with StopRequest():
    written = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(written)
    child(lambda: os.write(written, bytes([signal.SIGTERM])))
    time.sleep(1)
""",
    "a signal that was answered": """
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked
time.sleep(1)
""",
    "one request after another": """
for _ in range(2):
    with StopRequest() as stop: os.kill(os.getpid(), signal.SIGINT)
with StopRequest() as stop: time.sleep(1)
assert not stop.asked
while threading.active_count() > 1: time.sleep(0.01)
""",
}


def ends(code: str) -> int:
    return subprocess.run([sys.executable, "-c", PROGRAM + code], timeout=LIMIT, stderr=subprocess.DEVNULL).returncode


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone says who wrote to a socket")
@pytest.mark.parametrize("code", HEALTHY.values(), ids=HEALTHY)
def test_a_healthy_process_is_not_ended(code: str) -> None:
    assert ends(f"{code}\nos._exit(7)") == 7


@pytest.mark.parametrize("number", SIGNALS)
def test_one_that_does_not_answer_in_time_is_ended(number: signal.Signals) -> None:
    code = f"with StopRequest(): os.kill(os.getpid(), {number:d}); threading.Event().wait()"
    assert ends(code) == 128 + number


# In this process.


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_exit_code_is_the_signals(number: signal.Signals, tmp_path: Path) -> None:
    config = small(optim={"epochs": 3})

    class Sends(StopsAfter):
        def step(self, images: int) -> None:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), number)

    trainer = Trainer(make_plan(config), reporter=Sends(5))
    before = {n: signal.getsignal(n) for n in SIGNALS}
    with pytest.raises(Interrupted) as stopped:
        trainer.run(tmp_path / "run")
    assert stopped.value.exit_code == 128 + number
    assert {n: signal.getsignal(n) for n in SIGNALS} == before, "handlers are given back"
    resume(tmp_path / "run")
    train(config, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_one_request_that_comes_twice_is_one() -> None:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        assert stop.number == signal.SIGINT
        time.sleep(AT_ONCE + 0.1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_whoever_waits_around_is_asked_too() -> None:
    with StopRequest() as suite:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
        assert suite.asked
        assert suite.interrupted().exit_code == 143


def test_a_run_that_begins_after_its_suite_was_asked_is_asked_too() -> None:
    with StopRequest() as suite:
        os.kill(os.getpid(), signal.SIGTERM)
        with StopRequest() as stop:
            assert stop.asked
            assert stop.number == signal.SIGTERM
        assert suite.asked
