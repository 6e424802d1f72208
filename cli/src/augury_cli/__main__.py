"""Where the process of a command begins and ends: `augury`, and `python -m augury_cli` for launchers of several."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from augury_train.training.launch import end_with_parent, launched, place
from augury_train.training.watch import StopRequest, terminate

STOP_WITHIN = 8.5
"""Seconds from the signal to the end: schedulers kill after ten."""


def start() -> NoReturn:
    """Run the command of this line, and end the process with its exit code."""
    # Python would look for the modules of further processes in the present folder first, and that may be anybody's.
    os.environ["PYTHONSAFEPATH"] = "1"
    # A program in the background may be deaf to Ctrl-C, and stays so.
    deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    # The process is the command's own, and may be ended although a step takes long.
    StopRequest.limit = STOP_WITHIN
    try:
        for number in (signal.SIGTERM,) if deaf else (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        if launched():
            end_with_parent()
        from augury_cli.main import main

        main()
    except SystemExit as end:
        _end(end.code)
    except KeyboardInterrupt as stopped:
        _interrupted(getattr(stopped, "number", signal.SIGINT))
    _end(None)


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle SIGINT and SIGTERM where no step is waited for, so that files are closed and workers end.

    While a module is imported, the process ends at once: some of torch, and Python's own importing, take an exception
    there for another one, or lose it.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _interrupted(number)
        frame = frame.f_back
    if number == signal.SIGTERM:
        terminate(number, frame)
    raise KeyboardInterrupt


def _interrupted(number: int) -> NoReturn:
    """Say so, once for all processes, and end."""
    if place()[0] == 0:
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _end(code: object) -> NoReturn:
    """End at once: looking through half a million objects of torch for what to free takes Python two seconds, of the
    ten that a scheduler may give."""
    exit_code = code if isinstance(code, int) else int(code is not None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: os._exit(exit_code))
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)


if __name__ == "__main__":
    start()
