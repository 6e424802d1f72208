"""Who watches a training, and how it is asked to stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Protocol

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
    """The user asked to stop; what was done is kept."""

    exit_code = 130


class StopRequest:
    """Ctrl-C asks for a stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopRequest:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            # Whoever waits around this one is asked, too: a suite does not go on with its next run.
            around = getattr(self._before, "__self__", None)
            if self.asked and isinstance(around, StopRequest):
                around.asked = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
