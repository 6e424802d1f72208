"""Several processes of one command on this machine, started together and watched."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from augury.errors import AuguryError, UsageError
from augury_train.machine import cores
from augury_train.training.watch import AT_ONCE

PARENT = "AUGURY_PARENT"
"""Where a process finds the number of the one that started it."""
PAUSE = 0.05
"""Seconds between two looks at the processes."""
FEW = 4
"""Processes that are started however few cores there are: to try them out."""
GRACE = 4.0
"""Seconds that the others have to end by themselves, and to say why, when one has failed."""
PATIENCE = 10.0
"""Seconds that they have from then on until they are killed."""
STOPPING = 9.5
"""Seconds in which all end that were asked to stop: each ends itself before that, unless it hangs."""
LOST = 75
"""How a process ends that lost another one: it says nothing, and is not to blame where another failed."""


def place() -> tuple[int, int]:
    """Which process of how many this is, from 0, as torchrun, accelerate and `launch` say; (0, 1) where none did."""
    try:
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1
    return (rank, size) if 0 <= rank < size else (0, 1)


def launched() -> bool:
    """Whether `launch` started this process, and says what became of the others."""
    return PARENT in os.environ


class ProcessFailed(AuguryError):
    """A process failed, and the others were ended with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def launch(command: Sequence[str], processes: int, go_on: Callable[[], str]) -> int:
    """Start `command` so often, as processes that train together, and wait until all have ended.

    SIGINT and SIGTERM are passed on once; a second one ends all at once. One that fails ends the others.

    Args:
        command: the program and its arguments.
        processes: how many.
        go_on: says how to go on after a failure.

    Returns:
        the exit code: 0, that of a stop that was asked for, or 2 where the command was refused, which it has said.

    Raises:
        UsageError: there are processes that train together already, or more than the cores, or no such system.
        ProcessFailed: which process failed, and how.
    """
    if os.name != "posix":
        raise UsageError("several processes need Linux or macOS. Leave out --processes.")
    if launched() or "WORLD_SIZE" in os.environ:
        raise UsageError(
            f"--processes {processes} starts processes, and this is one of several already (torchrun, or accelerate "
            "launch). Leave out --processes."
        )
    if processes > (most := max(cores(), FEW)):
        raise UsageError(
            f"--processes {processes}: this machine has {cores()} cores. Each process takes one, and the memory of a "
            f"program of its own. Start at most {most}."
        )
    crew = _Crew(processes)
    with crew.listening():
        crew.start(command)
        return crew.watch(go_on)


def end_with_parent() -> None:
    """End this process at once when the one that started it is gone; to be called first, where `launched`."""
    parent = int(os.environ[PARENT])
    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Crew:
    """The processes, and what was asked of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._going: dict[int, subprocess.Popen[bytes]] = {}
        self._failed: tuple[int, int] | None = None
        """The one to blame, and its exit code."""
        self._terminated = False
        self._asked: int | None = None
        self._asked_at, self._passed_on, self._kill = 0.0, False, False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; whatever happens, no process is left behind."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self._signal(signal.SIGKILL)
            for process in self._going.values():
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked, self._asked_at = number, time.monotonic()
        elif time.monotonic() - self._asked_at > AT_ONCE:
            self._kill = True

    def start(self, command: Sequence[str]) -> None:
        shared = _shared(self._size)
        # A process must not meet Ctrl-C before it is ready for it; it lets it in itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for rank in range(self._size):
                own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                # Ctrl-C on the terminal is for this process alone, and whoever asks on the terminal is, too.
                self._going[rank] = subprocess.Popen(command, env=own, stdin=subprocess.DEVNULL, process_group=0)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def watch(self, go_on: Callable[[], str]) -> int:
        failed_at = 0.0
        while self._going:
            time.sleep(PAUSE)
            self._reap()
            if self._kill:
                break
            if self._asked is not None and not self._passed_on:
                self._passed_on = True
                self._signal(self._asked)
            if self._asked is not None:
                # One that ends first leaves the others their time for a checkpoint: a second signal would take it.
                self._kill = self._kill or time.monotonic() - self._asked_at > STOPPING
                continue
            if self._failed is None:
                continue
            failed_at = failed_at or time.monotonic()
            if not self._terminated and time.monotonic() - failed_at > GRACE:
                self._terminated = True
                self._signal(signal.SIGTERM)
            if time.monotonic() - failed_at > GRACE + PATIENCE:
                break
        cut_short = self._kill if self._failed is None else self._failed[1] == LOST
        if self._asked is not None and cut_short:
            return 128 + self._asked
        return self._told(go_on)

    def _reap(self) -> None:
        failed = []
        for rank, process in list(self._going.items()):
            if (code := process.poll()) is not None:
                del self._going[rank]
                if code:
                    failed.append((rank, code))
        # One that fails takes its time to end, and those that lost it may be faster.
        if self._failed is None:
            self._failed = min(failed, key=_blame, default=None)
        elif self._failed[1] == LOST and not self._terminated:
            self._failed = min([self._failed, *failed], key=_blame)

    def _signal(self, number: int) -> None:
        for process in self._going.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _told(self, go_on: Callable[[], str]) -> int:
        if self._failed is None:
            return 0
        rank, code = self._failed
        stopped = {128 + signal.SIGINT, 128 + signal.SIGTERM}
        exit_code = 128 - code if code < 0 else code
        if exit_code in stopped and (self._asked is not None or code > 0):
            return exit_code
        if code == UsageError.exit_code:
            return code
        exit_code = AuguryError.exit_code if code == LOST else exit_code
        others = "the other one was ended" if self._size == 2 else f"the other {self._size - 1} were ended"
        who = f"process {rank} of 0 to {self._size - 1}"
        if code < 0:
            told = f"{who} was ended by {_name(-code)}, and {others} with it. {go_on()}"
        elif code == LOST:
            told = f"{who} could no longer reach another one, and {others} with it. {go_on()}"
        else:
            # It has said how to go on, where there is a way.
            told = f"{who} failed with exit code {code} (it says above why), and {others} with it."
        raise ProcessFailed(told, exit_code)


def _blame(failed: tuple[int, int]) -> int:
    """Which of several failures comes first: whoever is killed says nothing, and makes others fail."""
    _, code = failed
    return 0 if code < 0 else 2 if code == LOST else 1


def _shared(size: int) -> dict[str, str]:
    """What all processes find in their environment."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        PARENT: str(os.getpid()),
    }
    usual: Mapping[str, str] = {
        "OMP_NUM_THREADS": str(max(1, cores() // size)),
        # torch complains at length, from C++, that a process is gone; what there is to say is said here.
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # They are on one machine: no name of it needs to be known, and nobody else hears them.
        "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
    }
    return {**usual, **environment}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _name(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} (for want of memory perhaps)" if number == signal.SIGKILL else name
