"""Two processes that train together, started once in a run of pytest; jobs are sent to both.

No clock decides about a job: each process reports what it begins, and is waited for as long as reports come.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import pickle
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from augury.distributed import Ranks

T = TypeVar("T")

SIZE = 2
LIMIT = 600.0
"""Seconds of waiting without any report, after which a job has hung. A step takes milliseconds."""
POLL = 0.02
"""Seconds that one look at a process's pipe waits."""


@dataclass(frozen=True)
class Home:
    """Where a class is defined, for a process that cannot import it by name."""

    module: str
    file: str

    @classmethod
    def of(cls, kind: type) -> Home:
        """The home of a class of this process."""
        return cls(kind.__module__, str(getattr(sys.modules.get(kind.__module__), "__file__", None) or ""))

    def load(self) -> None:
        """Import the module, so that what is pickled by its name is found."""
        try:
            importlib.import_module(self.module)
        except ImportError:
            spec = importlib.util.spec_from_file_location(self.module, self.file) if self.file else None
            if spec is None or spec.loader is None:
                raise
            module = importlib.util.module_from_spec(spec)
            sys.modules[self.module] = module
            spec.loader.exec_module(module)


class WorkersFailed(Exception):
    """A job failed, a process ended, or none reported anything for long; the message says what was seen."""


class ProcessesApart(WorkersFailed):
    """The processes called different collectives, so that one would wait for the other without end."""


class Reports:
    """What a process tells of its job: each part before it begins."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def begin(self, what: str) -> None:
        """Tell that `what` begins, `compute_loss of step 3` say."""
        _send(self._connection, ("begin", what))

    def collective(self, name: str) -> None:
        """Tell that a collective begins, in which a process waits for the other."""
        _send(self._connection, ("collective", name))


class ReportingRanks(Ranks):
    """The processes of the group; each collective of a method is reported before it begins."""

    def __init__(self, reports: Reports) -> None:
        super().__init__()
        self._reports = reports

    def sum(self, tensor: Tensor) -> Tensor:
        """As `Ranks` does; `mean` is made of it."""
        self._reports.collective("run.ranks.sum or mean")
        return super().sum(tensor)

    def gather_rows(self, tensor: Tensor, *, differentiable: bool = False) -> Tensor:
        """As `Ranks` does."""
        self._reports.collective("run.ranks.gather_rows")
        return super().gather_rows(tensor, differentiable=differentiable)

    def gather_objects(self, value: T) -> list[T]:
        """As `Ranks` does."""
        self._reports.collective("run.ranks.gather_objects")
        return super().gather_objects(value)


@dataclass
class _Heard:
    """What was heard of one process since its job began.

    Attributes:
        begun: the last part of the job that it began.
        collectives: those that it has begun, each with that part.
        answered: whether it has finished the job, with `answer`.
    """

    begun: str = ""
    collectives: list[tuple[str, str]] = field(default_factory=list)
    answered: bool = False
    answer: Any = None

    @property
    def last(self) -> str:
        """Its last call, for a message."""
        if self.collectives and self.collectives[-1][1] == self.begun:
            return f"its last call was {self.collectives[-1][0]} in {self.begun}"
        return f"its last call was {self.begun}" if self.begun else "it has not begun its job"


class Workers:
    """Two processes of one gloo group. They start when asked to, and anew after a job that failed."""

    def __init__(self) -> None:
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._connections: list[Connection] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._ready = False

    def start(self) -> None:
        """Start them, without waiting; nothing where they run already."""
        if self._processes:
            return
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._folder.name, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def stop(self) -> None:
        """End them."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._processes, self._connections, self._folder = [], [], None
        self._ready = False

    def run(self, home: Home, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call `work(rank, reports, *arguments)` in both.

        Args:
            home: of the class that pickles are about.
            work: a function of a module that can be imported by name. It tells `Reports` what it begins.
            arguments: what can be pickled.

        Returns:
            what each returned.

        Raises:
            WorkersFailed: one of them raised or ended, they called different collectives, or none reported anything
                for `LIMIT` seconds.
        """
        self.start()
        content = pickle.dumps((home, pickle.dumps((work, arguments))))
        try:
            if not self._ready:
                self._answers()
                self._ready = True
            for connection in self._connections:
                connection.send_bytes(content)
            return self._answers()
        except BaseException:
            # One of them may wait for the other in a collective, and the group is of no use any more.
            self.stop()
            raise

    def _answers(self) -> list[Any]:
        heard = [_Heard() for _ in range(SIZE)]
        silent = 0.0
        while not all(one.answered for one in heard):
            for rank, connection in enumerate(self._connections):
                if heard[rank].answered:
                    continue
                # The waiting is counted, not read from a clock: a machine that stops this process stops both.
                if not connection.poll(POLL):
                    silent += POLL
                    continue
                silent = 0.0
                self._hear(rank, heard)
            if silent > LIMIT:
                told = [
                    f"process {rank} has "
                    + ("finished" if one.answered else f"not answered for {silent:.0f} s; {one.last}")
                    for rank, one in enumerate(heard)
                ]
                raise WorkersFailed(". ".join(text[0].upper() + text[1:] for text in told) + ".")
        return [one.answer for one in heard]

    def _hear(self, rank: int, heard: list[_Heard]) -> None:
        """Read one message of a process.

        Raises:
            WorkersFailed: the process failed or ended, or the collectives of both differ.
        """
        failure = self._read(rank, heard[rank])
        if failure:
            # It may have failed in a collective that the other did not call: the other has reported by now.
            for other, connection in enumerate(self._connections):
                while other != rank and not heard[other].answered and connection.poll():
                    if self._read(other, heard[other]):
                        break
        if apart := _apart(heard):
            raise ProcessesApart(apart)
        if failure:
            raise WorkersFailed(failure)

    def _read(self, rank: int, heard: _Heard) -> str:
        """Take in one message; returns how the process failed, "" where it did not."""
        try:
            kind, content = torch.load(io.BytesIO(self._connections[rank].recv_bytes()), weights_only=False)
        except (EOFError, OSError):
            self._processes[rank].join(60)
            return f"process {rank} ended with exit code {self._processes[rank].exitcode}; {heard.last}."
        if kind == "failed":
            return f"process {rank}: {content}"
        if kind == "done":
            heard.answered, heard.answer = True, content
        elif kind == "begin":
            heard.begun = content
        else:
            heard.collectives.append((content, heard.begun))
        return ""


def _apart(heard: list[_Heard]) -> str:
    """How the collectives of the processes differ, so that one waits for the other without end; "" for not at all."""
    calls = [one.collectives for one in heard]
    for one, other in zip(*calls, strict=False):
        if one != other:
            return f"process 0 calls {one[0]} in {one[1]} while process 1 calls {other[0]} in {other[1]}."
    for rank, done in enumerate(heard):
        mine, others = calls[rank], calls[1 - rank]
        if done.answered and len(others) > len(mine):
            name, where = others[len(mine)]
            return f"process {1 - rank} calls {name} in {where}, and process {rank} finished without that call."
    return ""


def _serve(rank: int, folder: str, connection: Connection) -> None:
    """Do jobs until the other side is gone."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "store").as_uri(),
        rank=rank,
        world_size=SIZE,
        # Whoever sent the job gives up first, and says what was seen.
        timeout=timedelta(seconds=2 * LIMIT),
    )
    _send(connection, ("done", None))
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):
            break
        _send(connection, _answer(rank, content, Reports(connection)))
    dist.destroy_process_group()


def _send(connection: Connection, message: tuple[str, Any]) -> None:
    file = io.BytesIO()
    torch.save(message, file)
    # Whoever asked may have given up waiting.
    with contextlib.suppress(OSError):
        connection.send_bytes(file.getvalue())


def _answer(rank: int, content: bytes, reports: Reports) -> tuple[str, Any]:
    from augury_authoring.testing.bench import told

    try:
        home, job = pickle.loads(content)
        home.load()
        work, arguments = pickle.loads(job)
        return "done", work(rank, reports, *arguments)
    except BaseException as error:  # a method may even call sys.exit
        return "failed", told(error)
