"""The processes that read images: how they begin, and what is told when one is lost."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import multiprocessing.connection
import signal
import threading
import warnings
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from augury.errors import AuguryError, RunError
from augury_train.machine import cores, local_size
from augury_train.open_files import refuse_few_left, too_many_open_files

TOO_MANY = "This DataLoader will create"
"""How torch's warning of more workers than cores begins: how many there are is the user's to decide."""
_STOPPING = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 10
"""Seconds that a worker which was told to end leaves to the process that trains."""
_SETTLING = 1.0
"""Seconds in which a process whose connection broke is seen to be gone."""
FILES, FILES_EACH = 16, 8
"""Open files that a pass needs, and those for each process that reads: four pipes, and its batches on the way. A
process that cannot send its batch would block the run."""
FEWER = (
    "Make room for it, or read in fewer processes than {workers}: data.workers in the run's config.json, which "
    "changes no result."
)


def usual_workers() -> int:
    """As many as there are cores to use for each process that trains, at most 8."""
    return max(1, min(cores() // local_size(), 8))


def begin(number: int) -> None:
    """Make a worker leave signals to stop to the process that trains, which takes its time for a checkpoint and ends
    its workers. A terminal sends Ctrl-C to all processes in front, a batch scheduler SIGTERM to all of a job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What ends it in the end is the alarm: the process that trains may be gone, or wait for a worker that hangs.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_PATIENCE))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def shared(tensor: Tensor) -> Tensor:
    """What a worker made, where the process that trains can read it.

    Raises:
        RunError: there is no room for it. Left to the queue, this would fail in a thread, and be waited for for ever.
    """
    worker = get_worker_info()
    if worker is None:
        return tensor
    try:
        return tensor.share_memory_()
    except RuntimeError as error:
        if (too_many := too_many_open_files(error)) is not None:
            raise too_many from None
        size = tensor.nbytes / 2**20
        raise RunError(
            f"data: no room for a batch of {size:.1f} MiB in shared memory (/dev/shm; in a container, see its "
            f"--shm-size). {FEWER.format(workers=worker.num_workers)}"
        ) from None


class Readers:
    """The batches of a `DataLoader`, and the processes that make them."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        """Read what `loader` says; processes are started with the first pass, and anew for each unless they persist."""
        self._loader: DataLoader[Any] | None = loader
        self._workers = loader.num_workers
        self._processes: set[BaseProcess] = set()
        self._pass: list[Iterator[Any]] = []

    def batches(self) -> Iterator[Any]:
        """One pass.

        Raises:
            RunError: a process was killed.
        """
        # In a list, of which it is taken whoever still holds this frame, as an error's traceback does. Workers that it
        # kept alive would be left to the garbage collector, which may run in a process forked later, and there breaks
        # the queues that they are ended by.
        held: list[Iterator[Any]] = []
        self._pass = held
        lost: RunError | None = None
        try:
            # Processes of an earlier pass are asked for an answer when another one begins.
            self._begin(held)
            while held:
                yield next(held[0])
        except StopIteration:
            return
        except Exception as error:
            lost = self._lost(error)
            if lost is None:
                raise
        finally:
            with _sheltered():
                held.clear()
        if lost is not None:
            try:
                raise lost
            finally:
                del lost

    def close(self) -> None:
        """End the processes. One that is asked to stop while it waits for them would leave some behind."""
        with _sheltered():
            self._pass.clear()
            self._loader = None

    def _begin(self, held: list[Iterator[Any]]) -> None:
        assert self._loader is not None, "a pass after the last"
        if self._workers:
            refuse_few_left(FILES + FILES_EACH * self._workers)
        with _starting(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", TOO_MANY, UserWarning)
            before = set(multiprocessing.active_children())
            held.append(iter(self._loader))
            self._processes |= set(multiprocessing.active_children()) - before

    def _lost(self, error: Exception) -> RunError | None:
        """What to tell of an error that a process left behind which is no more."""
        if isinstance(error, AuguryError):
            return None
        if (too_many := too_many_open_files(error)) is not None:
            return too_many
        if isinstance(error, OSError | EOFError):
            multiprocessing.connection.wait([process.sentinel for process in self._processes], _SETTLING)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EAGAIN):
            return RunError(
                f"data: no process that reads images can be started ({error.strerror}), for want of memory or of "
                f"shared memory (/dev/shm). {FEWER.format(workers=self._workers)}"
            )
        codes = [process.exitcode for process in self._processes if process.exitcode]
        if not codes:
            return None
        return RunError(f"data: {_end(codes[0])} {FEWER.format(workers=self._workers)}")


def _end(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"a process that reads images ended by itself, with exit code {code}."
    if code == -signal.SIGALRM:
        # Only `begin` sets an alarm, when the process is asked to end.
        return (
            "a process that reads images was ended (SIGTERM) while the run was not asked to stop: by a guard against "
            "running out of memory (earlyoom, systemd-oomd) perhaps."
        )
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = {"SIGKILL": ", for want of memory perhaps", "SIGBUS": ", for want of shared memory (/dev/shm) perhaps"}
    return f"a process that reads images was killed ({name}){why.get(name, '')}."


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Processes started in the block meet no signal to stop before they are ready for it.

    And torch's handler does not stay that raises wherever this process is when one is lost, in the middle of a step
    say: it is enough that whoever waits for it is told.
    """
    main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGCHLD")
    handler = signal.getsignal(signal.SIGCHLD) if main else None
    with _sheltered():
        try:
            yield
        finally:
            if handler is not None:
                signal.signal(signal.SIGCHLD, handler)


@contextlib.contextmanager
def _sheltered() -> Iterator[None]:
    """Signals to stop wait until the block is over; processes started in it inherit that."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
