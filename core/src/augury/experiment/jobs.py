"""Several runs at once, each in a process of its own, spread over devices."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from augury.config import RunConfig
from augury.errors import AuguryError, UsageError
from augury.registry import Register
from augury.training.checkpoint import checkpoints
from augury.training.result import Result
from augury.training.watch import Interrupted, Reporter, Silent, StopRequest

PAUSE = 0.2
"""Seconds between two looks at what the processes say."""


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


Finish = Callable[[Task, Register | None, Reporter], Result]
"""Carries a task out; a function of a module, since processes find it by its name."""


def in_processes(
    tasks: Sequence[Task],
    finish: Finish,
    jobs: int,
    devices: Sequence[str],
    register: Register | None,
    reporter: Reporter,
) -> list[Result]:
    """The results of all tasks, in their order.

    A run whose stage another one is making waits for it, so that it is made once. Ctrl-C lets all write a checkpoint.

    Args:
        tasks: the runs.
        finish: carries one out.
        jobs: processes at once.
        devices: "cuda:0" and so on, in turn; whatever the settings say when empty.
        register: what method names mean.
        reporter: who watches; it is told of all runs together.

    Raises:
        Interrupted: the user asked to stop.
        AuguryError: a run failed, or its process was killed; the others are asked to stop.
    """
    context = multiprocessing.get_context("spawn")
    news, places, enough = context.Queue(), context.Queue(), context.Event()
    for number in range(jobs):
        places.put(devices[number % len(devices)] if devices else "")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(jobs, context, _begin, (news, places, enough, threads, os.getpid()))
    crew = _Crew(tasks, jobs, reporter, news, enough)
    with crew.stop, contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)
        stack.callback(crew.ask_to_stop)
        try:
            return crew.work(lambda task: pool.submit(_work, finish, task, register))
        except BrokenProcessPool:
            going = ", ".join(task.label.partition(" ")[2] for task in crew.going.values())
            raise AuguryError(
                f"a process ended without a word, killed for want of memory perhaps, at one of: {going}. "
                f"Go on with the same command, and fewer --jobs than {jobs}."
            ) from None
        except KeyboardInterrupt:
            crew.kill()
            raise


class _Crew:
    """Hands out tasks, listens to the processes, and asks them to stop."""

    def __init__(self, tasks: Sequence[Task], jobs: int, reporter: Reporter, news: Any, enough: Any) -> None:
        self.stop = StopRequest()
        self.going: dict[Future[Result], Task] = {}
        self._tasks, self._jobs, self._news = tasks, jobs, news
        self._processes: set[int] = set()
        self._reporter = reporter
        self._reporters: dict[str, Reporter] = {}
        self._enough = enough

    def work(self, submit: Callable[[Task], Future[Result]]) -> list[Result]:
        left, done = list(self._tasks), {}
        while left or self.going:
            while len(self.going) < self._jobs and (ready := self._next(left)) is not None:
                left.remove(ready)
                self.going[submit(ready)] = ready
            finished, _ = wait(self.going, timeout=PAUSE, return_when=FIRST_COMPLETED)
            self._listen()
            for future in finished:
                # Those that fail stay among those at work, to be named.
                done[self.going[future].label] = future.result()
                del self.going[future]
            if self.stop.asked:
                self._wind_up()
        return [done[task.label] for task in self._tasks]

    def _next(self, left: Sequence[Task]) -> Task | None:
        """The first task that needs no stage which a run at work has not made yet."""
        for task in left:
            waiting = any(
                other.folder in task.others and _may_share(task, other) and not checkpoints(other.folder)
                for other in self.going.values()
            )
            if not waiting:
                return task
        return None

    def _wind_up(self) -> None:
        """Let the runs at work write their checkpoints."""
        self.ask_to_stop()
        while self.going:
            finished, _ = wait(self.going, timeout=PAUSE, return_when=FIRST_COMPLETED)
            self._listen()
            for future in finished:
                self.going.pop(future)
        raise Interrupted("interrupted")

    def ask_to_stop(self) -> None:
        """Once: a second signal would end them at once."""
        if not self._enough.is_set() and self.going:
            self._enough.set()
            self._signal(signal.SIGINT)

    def kill(self) -> None:
        """End them at once."""
        self._enough.set()
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _listen(self) -> None:
        while True:
            try:
                label, what, arguments = self._news.get_nowait()
            except queue.Empty:
                return
            if what == "process":
                self._processes.add(*arguments)
                continue
            if label not in self._reporters:
                self._reporters[label] = self._reporter.named(label)
            getattr(self._reporters[label], what)(*arguments)


def _may_share(task: Task, other: Task) -> bool:
    return bool({m.name for m in task.config.methods} & {m.name for m in other.config.methods})


# What runs in the processes.

_news: Any = None
_enough: Any = None
_busy = False


def _begin(news: Any, places: Any, enough: Any, threads: int, parent: int) -> None:
    """Make a process ready: its device, its threads; it ends with the program that started it."""
    global _news, _enough
    _news, _enough = news, enough
    # Ctrl-C on the terminal is the parent's, which passes it on once.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, _interrupt)
    if device := places.get():
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(device)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    news.put(("", "process", (os.getpid(),)))


def _visible(device: str) -> str:
    """The number of a GPU as CUDA counts them, where some may be hidden already."""
    number = int(device.partition(":")[2] or 0)
    shown = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return shown[number] if number < len(shown) else str(number)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Between tasks there is nothing to interrupt; in one, a training at work asks for its checkpoint itself."""
    if _busy:
        raise Interrupted("interrupted")


def _work(finish: Finish, task: Task, register: Register | None) -> Result:
    global _busy
    _busy = True
    try:
        # Asked after this, the handler interrupts.
        if _enough.is_set():
            raise Interrupted("interrupted")
        return finish(task, register, _Sender(task.label))
    finally:
        _busy = False


class _Sender(Silent):
    """Passes on what a reporter is told; steps together, a few times a second."""

    def __init__(self, label: str) -> None:
        self._label, self._steps, self._said = label, 0, time.monotonic()

    def _send(self, what: str, *arguments: Any) -> None:
        _news.put((self._label, what, arguments))

    def note(self, line: str) -> None:
        self._send("note", line)

    def start(self, what: str, total_steps: int, done: int) -> None:
        self._send("start", what, total_steps, done)

    def step(self, images: int) -> None:
        self._steps += 1
        if time.monotonic() - self._said > PAUSE:
            self._flush(images)

    def epoch(self, row: dict[str, Any]) -> None:
        self._send("epoch", row)

    def stop(self) -> None:
        self._send("stop")

    def _flush(self, images: int) -> None:
        for _ in range(self._steps):
            self._send("step", images)
        self._steps, self._said = 0, time.monotonic()


def check_devices(devices: Sequence[str]) -> None:
    """Raises: UsageError where a device is none of this machine's GPUs."""
    import torch

    count = torch.cuda.device_count() if any(d.startswith("cuda") for d in devices) else 0
    for device in devices:
        kind, _, number = device.partition(":")
        if kind != "cuda" or not (number.isdigit() or device == "cuda") or int(number or 0) >= count:
            here = ", ".join(f"cuda:{n}" for n in range(count)) or "none"
            raise UsageError(
                f"device `{device}` must be one of this machine's GPUs: {here}. Example: --device cuda:0,cuda:1."
            )
