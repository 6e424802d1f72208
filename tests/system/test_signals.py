"""A run that is told to stop: a checkpoint at the next step, 130 or 143 within ten seconds, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.core.small_runs import StopsAfter, assert_same_run, small

from augury.training.checkpoint import checkpoints
from augury.training.plan import make_plan
from augury.training.trainer import Trainer, resume, train
from augury.training.watch import AT_ONCE, Interrupted, StopRequest

AUGURY = str(Path(sys.executable).with_name("augury"))
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    deadline = time.monotonic() + 120
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
    asked = time.monotonic()
    os.killpg(process.pid, number)
    _, told = process.communicate(timeout=30)
    assert time.monotonic() - asked < 10
    assert process.returncode == 128 + number
    assert told.splitlines()[-1] == f"interrupted; what was done is kept. Go on with: augury resume {folder}"
    assert "Traceback" not in told
    assert "ignored" not in told
    assert len(checkpoints(folder)) == 2
    assert not psutil.wait_procs(workers, timeout=5)[1], "nothing is left running"


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
    asked = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert time.monotonic() - asked < 4


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_not_waited_for(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = in_a_long_step(started, tmp_path / "run")
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert 5 < time.monotonic() - asked < 10
    assert process.returncode == 143
    assert "the newest checkpoint counts" in told


@pytest.mark.slow
def test_before_training_there_is_nothing_to_keep(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started("run", "--set", "device=cpu", "--output", str(tmp_path / "run"))
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "Traceback" not in told


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
