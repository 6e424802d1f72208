"""Several runs at once, each in a process of its own, spread over devices."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from augury.errors import AuguryError, UsageError
from augury.registry import Register
from augury_lab.experiment.worker import PAUSE, Finish, Task, begin, work
from augury_train.machine import cores
from augury_train.training.checkpoint import checkpoints
from augury_train.training.result import Result
from augury_train.training.watch import AT_ONCE, Interrupted, Reporter, StopRequest


def in_processes(
    tasks: Sequence[Task],
    finish: Finish,
    jobs: int,
    devices: Sequence[str],
    register: Register | None,
    reporter: Reporter,
) -> list[Result]:
    """The results of all tasks, in their order.

    A run whose stage another one is making waits for it, so that it is made once. Ctrl-C and SIGTERM let all write a
    checkpoint.

    Args:
        tasks: the runs.
        finish: carries one out.
        jobs: processes at once.
        devices: "cuda:0" and so on, in turn; whatever the settings say when empty.
        register: what method names mean.
        reporter: who watches; it is told of each run under its label.

    Raises:
        Interrupted: the user asked to stop.
        AuguryError: a run failed, and the others were asked to stop; or a process was killed, and they ended with it.
    """
    if os.name != "posix":
        raise UsageError("several runs at once need Linux or macOS. Leave out --jobs and --device.")
    context = multiprocessing.get_context("spawn")
    news, places, enough = context.Queue(), context.Queue(), context.Event()
    for number in range(jobs):
        places.put(devices[number % len(devices)] if devices else "")
    pool = ProcessPoolExecutor(jobs, context, begin, (news, places, enough, _threads(jobs), os.getpid()))
    crew = _Crew(tasks, jobs, reporter, news, enough)
    reporter.note(f"starting {min(jobs, len(tasks))} process(es), which takes some seconds")

    def submit(task: Task) -> Future[Result]:
        # A process may be started here, and must not meet Ctrl-C before it is ready for it.
        with _sheltered():
            return pool.submit(work, finish, task, register)

    with crew.stop:
        try:
            return crew.work(submit)
        except BrokenProcessPool:
            if crew.stop.asked:
                raise crew.stop.interrupted() from None
            going = ", ".join(task.name for task in crew.going.values())
            raise AuguryError(
                f"a process ended without a word, killed for want of memory perhaps, at one of: {going}. "
                f"Go on with the same command, and fewer --jobs than {jobs}."
            ) from None
        except KeyboardInterrupt:
            crew.kill()
            raise
        finally:
            crew.ask_to_stop()
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:
                crew.kill()
                raise


def _threads(jobs: int) -> int:
    """A process's share of the cores, and no more than this program was given."""
    import torch

    return max(1, min(torch.get_num_threads(), cores() // jobs))


@contextlib.contextmanager
def _sheltered() -> Iterator[None]:
    """Signals to stop wait until the block is over; processes started in it inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, StopRequest.signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Crew:
    """Hands out tasks, listens to the processes, and asks them to stop."""

    def __init__(self, tasks: Sequence[Task], jobs: int, reporter: Reporter, news: Any, enough: Any) -> None:
        self.stop = StopRequest()
        self.stop.way_on = "the same command"
        self.going: dict[Future[Result], Task] = {}
        self._tasks, self._jobs, self._news = tasks, jobs, news
        self._processes: set[int] = set()
        self._asked: set[int] = set()
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
                done[self.going[future].label] = self._result(future)
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

    def _result(self, future: Future[Result]) -> Result:
        """Return a run's result.

        Raises:
            AuguryError: the run failed, or its process alone was asked to stop.
        """
        try:
            return future.result()
        except Interrupted as stopped:
            # A batch scheduler asks all processes of a job, and this one may be the last to hear it.
            time.sleep(AT_ONCE)
            if self.stop.asked:
                raise
            name = signal.Signals(stopped.number).name
            raise AuguryError(
                f"{self.going[future].name}: its process was asked to end ({name}) while "
                "the comparison was not, by a guard against running out of memory (earlyoom, systemd-oomd) perhaps. "
                "What was done is kept, and the other runs were stopped with it.\n"
                f"Go on with the same command, and fewer --jobs than {self._jobs} where memory is short."
            ) from None

    def _wind_up(self) -> None:
        """Let the runs at work write their checkpoints."""
        while self.going:
            self.ask_to_stop()
            finished, _ = wait(self.going, timeout=PAUSE, return_when=FIRST_COMPLETED)
            self._listen()
            for future in finished:
                self.going.pop(future)
        raise self.stop.interrupted()

    def ask_to_stop(self) -> None:
        """Each process once: a second signal would end it at once."""
        if self.going:
            self._enough.set()
            self._signal(self._processes - self._asked, signal.SIGINT)
            self._asked |= self._processes

    def kill(self) -> None:
        """End them at once."""
        self._enough.set()
        self._signal(self._processes, signal.SIGKILL)

    def _signal(self, processes: set[int], number: int) -> None:
        for process in processes:
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
