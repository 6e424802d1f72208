"""Two processes that train together, started once in a run of pytest; jobs are sent to both."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import multiprocessing
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

SIZE = 2
START, LIMIT = 120.0, 30.0
"""Seconds that the processes may take to start, and a job to end."""


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
    """A job failed, or a process waited for the other in vain; the message says what was raised."""


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
        """Call `work(rank, *arguments)` in both.

        Args:
            home: of the class that pickles are about.
            work: a function of a module that can be imported by name.
            arguments: what can be pickled.

        Returns:
            what each returned.

        Raises:
            WorkersFailed: one of them raised, or took too long.
        """
        self.start()
        content = pickle.dumps((home, pickle.dumps((work, arguments))))
        try:
            if not self._ready:
                self._answers(START)
                self._ready = True
            for connection in self._connections:
                connection.send_bytes(content)
            return self._answers(LIMIT)
        except BaseException:
            # One of them may wait for the other in a collective, and the group is of no use any more.
            self.stop()
            raise

    def _answers(self, seconds: float) -> list[Any]:
        answers: dict[int, Any] = {}
        until = time.monotonic() + seconds
        while len(answers) < SIZE:
            for rank, connection in enumerate(self._connections):
                if rank in answers or not connection.poll(0.02):
                    continue
                try:
                    done, answer = torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False)
                except (EOFError, OSError):
                    raise WorkersFailed(f"process {rank} ended.") from None
                if not done:
                    raise WorkersFailed(f"process {rank}: {answer}")
                answers[rank] = answer
            if time.monotonic() > until:
                raise WorkersFailed("the processes wait for each other without end.")
        return [answers[rank] for rank in range(SIZE)]


def _serve(rank: int, folder: str, connection: Connection) -> None:
    """Do jobs until the other side is gone."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=Path(folder, "store").as_uri(),
        rank=rank,
        world_size=SIZE,
        timeout=timedelta(seconds=START),
    )
    _send(connection, (True, None))
    while True:
        try:
            content = connection.recv_bytes()
        except (EOFError, OSError):
            break
        _send(connection, _answer(rank, content))
    dist.destroy_process_group()


def _send(connection: Connection, answer: tuple[bool, Any]) -> None:
    file = io.BytesIO()
    torch.save(answer, file)
    # Whoever asked may have given up waiting.
    with contextlib.suppress(OSError):
        connection.send_bytes(file.getvalue())


def _answer(rank: int, content: bytes) -> tuple[bool, Any]:
    from augury.testing.bench import told

    try:
        home, job = pickle.loads(content)
        home.load()
        work, arguments = pickle.loads(job)
        return True, work(rank, *arguments)
    except BaseException as error:  # a method may even call sys.exit
        return False, told(error)
