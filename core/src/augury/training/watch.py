"""Who watches a training, and how it is asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any, ClassVar, NoReturn, Protocol

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
        self._alarm: tuple[socket.socket, int] | None = None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.signals}
            if self.limit is not None:
                self._listen(self.limit)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
            # Whoever waits around this one is asked, too: a suite does not go on with its next run.
            around = getattr(before, "__self__", None)
            if self.asked and isinstance(around, StopRequest):
                around.asked, around.number = True, self.number
        self._before = {}
        if self._alarm is not None:
            ours, before_fd = self._alarm
            signal.set_wakeup_fd(before_fd)
            ours.close()

    def interrupted(self, message: str = "interrupted") -> Interrupted:
        """The error that ends what was asked to stop."""
        return Interrupted(message, self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self.number, self._asked_at = True, number, now
        elif now - self._asked_at > AT_ONCE:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _listen(self, limit: float) -> None:
        """End this process at the limit, in the middle of whatever it does.

        Python runs its handlers between two of its instructions, and one of them may be a whole backward pass. What a
        signal writes to this socket, a thread hears at once.
        """
        theirs, ours = socket.socketpair()
        ours.setblocking(False)
        self._alarm = ours, signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)

        def listen() -> None:
            first: float | None = None
            with theirs:
                while number := theirs.recv(1):
                    now = time.monotonic()
                    if number[0] not in self.signals:
                        continue
                    if first is None:
                        first = now
                        late = threading.Timer(limit, self._end, (number[0], "no step ended in time"))
                        late.daemon = True
                        late.start()
                    elif now - first > AT_ONCE:
                        self._end(number[0], "ended at once")

        threading.Thread(target=listen, daemon=True).start()

    def _end(self, number: int, why: str) -> NoReturn:
        """End the process. Files are whole at any moment, and processes that read images end when this one is gone."""
        shown = "\x1b[?25h" if os.isatty(2) else ""  # the cursor, which progress bars hide
        told = f"{shown}\n{why}, so the newest checkpoint counts. Go on with: {self.way_on}\n"
        with contextlib.suppress(OSError):
            os.write(2, told.encode(errors="replace"))
        os._exit(128 + number)
