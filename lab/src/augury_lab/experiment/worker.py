"""One run of a suite, and the process that carries out one after the other."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from augury.registry import Register
from augury_train.config import RunConfig
from augury_train.training.result import Result
from augury_train.training.watch import Interrupted, Reporter, Silent, StopRequest

PAUSE = 0.2
"""Seconds between two words of a process."""


@dataclass(frozen=True)
class Task:
    """One run of a suite.

    Attributes:
        label: what a reporter calls it.
        config: its settings.
        folder: its own.
        others: those of the runs that may share its pre-train stages.
    """

    label: str
    config: RunConfig
    folder: Path
    others: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The label without the count before it."""
        return self.label.partition(" ")[2]


Finish = Callable[[Task, Register | None, Reporter], Result]
"""Carries a task out; a function of a module, since processes find it by its name."""


def warm_up() -> None:
    """Import what a run imports when it is over, so that the first run's clock does not show it."""
    for name in ("matplotlib.figure", "torchmetrics.functional.classification"):
        import_module(name)


# In a process of its own.

_news: Any = None
_enough: Any = None
_beginning, _busy = True, False


def begin(news: Any, places: Any, enough: Any, threads: int, parent: int) -> None:
    """Make a process ready: its device, its threads; it ends with the program that started it.

    Args:
        news: takes what a reporter is to be told: (label, method, arguments).
        places: gives the process its device, "cuda:0" say, or "".
        enough: is set when no task is to be begun any more.
        threads: that it computes with.
        parent: the process that started it.
    """
    global _news, _enough, _beginning
    _news, _enough = news, enough
    # Ctrl-C on the terminal is the parent's, which passes it on once. It came blocked.
    os.setpgid(0, 0)
    for number in StopRequest.signals:
        signal.signal(number, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, StopRequest.signals)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    news.put(("", "process", (os.getpid(),)))
    try:
        _prepare(places.get(), threads)
    except KeyboardInterrupt:
        # No task is begun any more, so nothing is needed for one.
        pass
    finally:
        _beginning = False


def _prepare(device: str, threads: int) -> None:
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(device)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    warm_up()


def work(finish: Finish, task: Task, register: Register | None) -> Result:
    """Carry a task out.

    Raises:
        Interrupted: the parent asked to stop.
    """
    global _busy
    _busy = True
    try:
        # Asked after this, the handler interrupts.
        if _enough.is_set():
            raise Interrupted("interrupted")
        return finish(task, register, _Sender(task.label))
    finally:
        _busy = False


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Between tasks there is nothing to interrupt; in one, a training at work asks for its checkpoint itself."""
    if _beginning:
        raise KeyboardInterrupt
    if _busy:
        raise Interrupted("interrupted", number)


def _visible(device: str) -> str:
    """The number of a GPU as CUDA counts them, where some may be hidden already."""
    number = int(device.partition(":")[2] or 0)
    shown = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return shown[number] if number < len(shown) else str(number)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Sender(Silent):
    """Passes on what a reporter is told; steps together, a few times a second."""

    def __init__(self, label: str) -> None:
        self._label, self._steps, self._images, self._said = label, 0, 0, time.monotonic()

    def _send(self, what: str, *arguments: Any) -> None:
        _news.put((self._label, what, arguments))

    def note(self, line: str) -> None:
        self._send("note", line)

    def start(self, what: str, total_steps: int, done: int) -> None:
        self._send("start", what, total_steps, done)

    def step(self, images: int) -> None:
        self._steps, self._images = self._steps + 1, images
        if time.monotonic() - self._said > PAUSE:
            self._flush()

    def epoch(self, row: dict[str, Any]) -> None:
        self._flush()
        self._send("epoch", row)

    def stop(self) -> None:
        self._flush()
        self._send("stop")

    def _flush(self) -> None:
        for _ in range(self._steps):
            self._send("step", self._images)
        self._steps, self._said = 0, time.monotonic()
