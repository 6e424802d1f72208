"""Several processes of one command: what they are told, how they end each other. No run is made here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from augury.errors import UsageError
from augury_train.training import launch as launching
from augury_train.training.launch import LOST, ProcessFailed, launch, place

SECONDS = 240
"""Seconds after which a process hangs."""


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.3)
    monkeypatch.setattr(launching, "PATIENCE", 0.5)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", f"import os, signal, sys, time; rank = int(os.environ['RANK']); {code}"]


def test_each_is_told_its_place_and_its_share_of_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS", "AUGURY_PARENT"]
    code = f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert launch(python(code), 3, str) == 0
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text() == f"{rank} {rank} 3 3 127.0.0.1 2 {os.getpid()}"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch(python("sys.exit(os.environ['OMP_NUM_THREADS'] != '5')"), 2, str) == 0


def test_one_that_fails_ends_the_others_and_is_named() -> None:
    # Deaf to what it is asked: it is killed.
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.exit(3) if rank == 1 else time.sleep(600)"
    with pytest.raises(
        ProcessFailed, match=r"^process 1 of 0 to 2 failed with exit code 3 .*other 2 were ended with it\.$"
    ) as e:
        launch(python(code), 3, lambda: "how to go on, which that one has said")
    assert e.value.exit_code == 3


def test_one_that_is_killed_is_named_with_the_signal() -> None:
    code = "os.kill(os.getpid(), signal.SIGKILL) if rank == 0 else time.sleep(600)"
    with pytest.raises(
        ProcessFailed, match=r"^process 0 of 0 to 1 was ended by SIGKILL .*the other one.* go on$"
    ) as error:
        launch(python(code), 2, lambda: "go on")
    assert error.value.exit_code == 137


@pytest.mark.parametrize(
    ("codes", "together", "named", "exit_code"),
    [
        ((LOST, -9, 1), True, "process 1 .* SIGKILL", 137),
        ((LOST, -9, LOST), False, "process 1 .* SIGKILL", 137),
        ((LOST, 1, LOST), False, "process 1 .* exit code 1", 1),
        ((0, LOST, LOST), True, "process [12] .* could no longer reach another one.* go on$", 1),
    ],
)
def test_whoever_only_lost_another_is_not_to_blame(
    codes: tuple[int, ...], together: bool, named: str, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "PAUSE", 0.5 if together else 0.01)
    # All end by themselves, however long that takes.
    monkeypatch.setattr(launching, "GRACE", float(SECONDS))
    # Those that lost another are done before it is.
    late = "" if together else f"time.sleep(0.15 * (code != {LOST}));"
    code = f"code = {codes}[rank]; {late} os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)"
    with pytest.raises(ProcessFailed, match=named) as error:
        launch(python(code), 3, lambda: "go on")
    assert error.value.exit_code == exit_code


@pytest.mark.parametrize("code", [2, 130, 143])
def test_a_refusal_and_a_stop_say_all_there_is_to_say_themselves(code: int) -> None:
    assert launch(python(f"sys.exit({code} if rank else 0)"), 2, str) == code


LAUNCHER = """
import sys
from augury_train.training import launch as launching
from augury_train.training.launch import launch
if sys.argv[2] == "hang": launching.STOPPING = 0.5
code = '''
import os, signal, sys, time
def stop(number, frame):
    open(sys.argv[1] + "/got-" + os.environ["RANK"], "a").write(f"{number} ")
    if sys.argv[2] == "obey": sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
open(sys.argv[1] + "/" + os.environ["RANK"], "w").write(str(os.getpid()))
while True: time.sleep(0.05)
'''
sys.exit(launch([sys.executable, "-S", "-c", code, *sys.argv[1:]], 2, str))
"""


def started(folder: Path, manner: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(folder), manner])
    until = time.monotonic() + SECONDS
    while not all((folder / rank).exists() and (folder / rank).read_text() for rank in "01"):
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_to_each(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path, "obey")
    process.send_signal(number)
    assert process.wait(SECONDS) == 128 + number
    assert [(tmp_path / f"got-{rank}").read_text() for rank in "01"] == [f"{int(number)} "] * 2


def test_those_that_hang_are_not_waited_for(tmp_path: Path) -> None:
    process = started(tmp_path, "hang")
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 143
    for rank in "01":
        assert (tmp_path / f"got-{rank}").read_text() == "15 ", "they were asked before"


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    process = started(tmp_path, "ignore")
    process.send_signal(signal.SIGTERM)
    time.sleep(launching.AT_ONCE + 0.3)
    assert process.poll() is None, "the first one only asks"
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 143
    for rank in "01":
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / rank).read_text()), 0)


def test_more_processes_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "cores", lambda: 6)
    with pytest.raises(UsageError, match="--processes 7: this machine has 6 cores.*at most 6"):
        launch(python("pass"), 7, str)


def test_processes_are_not_started_within_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--processes 4 starts processes, and this is one of several already"):
        launch(["false"], 4, str)


@pytest.mark.parametrize(
    ("rank", "size", "expected"), [("1", "4", (1, 4)), (None, None, (0, 1)), ("5", "4", (0, 1)), ("x", "2", (0, 1))]
)
def test_place(rank: str | None, size: str | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert place() == expected
