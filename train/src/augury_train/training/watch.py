"""Who watches a training, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, Protocol

from augury.errors import AuguryError


class Reporter(Protocol):
    """Who watches a training: a progress bar, or nobody."""

    def note(self, line: str) -> None:
        """Something the user may not expect."""

    def read(self, done: int, total: int) -> None:
        """So many of the images are decoded."""

    def start(self, what: str, total_steps: int, done: int) -> None:
        """A training of `total_steps` begins, `done` of them already made."""

    def step(self, images: int) -> None:
        """An optimiser step of so many images is made."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's row is written."""

    def stop(self) -> None:
        """This training is over."""

    def named(self, name: str) -> Reporter:
        """Who watches one run of several, which may go on at once."""


class Silent:
    """Watches nothing."""

    def note(self, line: str) -> None:
        return None

    def read(self, done: int, total: int) -> None:
        return None

    def start(self, what: str, total_steps: int, done: int) -> None:
        return None

    def step(self, images: int) -> None:
        return None

    def epoch(self, row: dict[str, Any]) -> None:
        return None

    def stop(self) -> None:
        return None

    def named(self, name: str) -> Reporter:
        return self


class Interrupted(AuguryError):
    """A run was asked to stop, by Ctrl-C or by a batch scheduler; what was done is kept."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        """Say `message`; `number` is the signal that asked."""
        super().__init__(message)
        self.number = number
        self.exit_code = 128 + number


class Terminated(KeyboardInterrupt):
    """SIGTERM, where no step is waited for."""

    number = signal.SIGTERM


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM as Python handles SIGINT, so that files are closed and workers end."""
    raise Terminated


AT_ONCE = 0.5
"""Seconds in which signals are one request: a terminal sends Ctrl-C to all processes in front, and a launcher passes it
on."""
_CREDENTIALS = struct.Struct("3i")
"""What Linux says of the sender of a message: its process, user and group."""


class StopRequest:
    """SIGINT and SIGTERM ask for a stop at the next step; a second one stops at once.

    Attributes:
        asked: whether one was asked for.
        number: the signal that asked.
        way_on: the command that goes on where this process ends.
        limit: seconds after which the process ends although no step came, with the checkpoint that it has. Set where
            the process is the command's own: a notebook is not ended.
    """

    limit: ClassVar[float | None] = None
    signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self.number: int = signal.SIGINT
        self.way_on = "augury resume RUN"
        self._before: dict[signal.Signals, Any] = {}
        self._asked_at = 0.0
        self._deadline: _Deadline | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            if self.limit is not None:
                self._deadline = _Deadline(self.limit, lambda: self.way_on)
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
            for around in map(_request_of, self._before.values()):
                # A suite that was asked between two of its runs does not train the next one.
                if around is not None and around.asked:
                    self.asked, self.number, self._asked_at = True, around.number, around._asked_at
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
            # Whoever waits around this one is asked, too: a suite does not go on with its next run.
            around = _request_of(before)
            if self.asked and around is not None:
                around.asked, around.number = True, self.number
        self._before = {}
        if self._deadline is not None:
            self._deadline.close()
            self._deadline = None

    def interrupted(self, message: str = "interrupted") -> Interrupted:
        """The error that ends what was asked to stop."""
        return Interrupted(message, self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self.number, self._asked_at = True, number, now
        elif now - self._asked_at > AT_ONCE:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _request_of(handler: Any) -> StopRequest | None:
    """Return the request that a signal handler belongs to."""
    owner = getattr(handler, "__self__", None)
    return owner if isinstance(owner, StopRequest) else None


class _Deadline:
    """End this process when it was asked to stop and has not done so within a limit, whatever it does meanwhile.

    Python calls its signal handlers between two of its instructions, and one of them may be a whole backward pass. A
    thread reads what a signal writes to a socket, and hears it at once.
    """

    _current: ClassVar[set[int]] = set()
    """Descriptors of the sockets that signals of this process write to."""

    def __init__(self, limit: float, way_on: Callable[[], str]) -> None:
        """Listen until `close`.

        Args:
            limit: seconds from the first signal to the end.
            way_on: says the command that goes on.

        Raises:
            OSError: no socket can be opened.
        """
        self._limit, self._way_on, self._closed = limit, way_on, False
        self._timer: threading.Timer | None = None
        self._read, self._written = socket.socketpair()
        self._written.setblocking(False)
        if hasattr(socket, "SO_PASSCRED"):
            # Linux then says with each byte which process wrote it.
            self._read.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._current.add(self._written.fileno())
        self._before = signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """Stop listening; a signal that was heard ends nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        signal.set_wakeup_fd(self._before)
        self._current.discard(self._written.fileno())
        # A forked process may still hold the socket, so that closing it alone would not end the thread.
        with contextlib.suppress(OSError):
            self._written.shutdown(socket.SHUT_RDWR)
        self._written.close()

    @classmethod
    def leave_to_parent(cls) -> None:
        """Write no signals of this process, which was forked, to a socket of its parent."""
        if cls._current and (written := signal.set_wakeup_fd(-1)) not in cls._current:
            signal.set_wakeup_fd(written)
        cls._current.clear()

    def _listen(self) -> None:
        first: float | None = None
        with self._read:
            while (number := self._next()) is not None:
                now = time.monotonic()
                if number not in StopRequest.signals:
                    continue
                if first is None:
                    first = now
                    self._timer = threading.Timer(self._limit, self._end, (number, "no step ended in time"))
                    self._timer.daemon = True
                    self._timer.start()
                elif now - first > AT_ONCE:
                    self._end(number, "ended at once")

    def _next(self) -> int | None:
        """Return the number of the next signal; 0 where another process wrote it, None when nothing comes any more."""
        if not hasattr(socket, "SO_PASSCRED"):
            return next(iter(self._read.recv(1)), None)
        data, said, _, _ = self._read.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not data:
            return None
        senders = [_CREDENTIALS.unpack(content)[0] for _, kind, content in said if kind == socket.SCM_CREDENTIALS]
        return data[0] if all(sender == os.getpid() for sender in senders) else 0

    def _end(self, number: int, why: str) -> None:
        """End the process. Files are whole at any moment, and processes that read images end when this one is gone."""
        if self._closed:
            return
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which progress bars hide
        told = f"{shown}\n{why}, so the newest checkpoint counts. Go on with: {self._way_on()}\n"
        with contextlib.suppress(OSError):
            os.write(2, told.encode(errors="replace"))
        os._exit(128 + number)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Deadline.leave_to_parent)
