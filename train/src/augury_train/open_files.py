"""The system's limit of open files: what is told where it is too low."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from augury.errors import RunError, UsageError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

LEAST = 64
"""Files that a command may have open at once, at least. A run takes some 40 of them, and 10 for each process that reads
images."""
USUAL = 4096
"""What the limit is to be raised to."""
_CODES = {errno.EMFILE, errno.ENFILE}
_SIGNS = ("too many open files", "items of ancdata")
"""What torch and multiprocessing say, without the number of the error."""


class TooManyOpenFiles(RunError):
    """No further file could be opened; the message says what the limit is and how to raise it."""


def refuse_low_limit() -> None:
    """Refuse to begin where no command can come to its end.

    Raises:
        UsageError: the limit is below `LEAST`.
    """
    found = _limits()
    if found is not None and found[0] < LEAST:
        raise UsageError(f"{_limit_told(*found)}, and augury needs {LEAST}. {_way_out(*found)}.")


def refuse_few_left(needed: int) -> None:
    """Refuse to begin what opens so many more files, where they do not fit.

    Raises:
        TooManyOpenFiles: fewer can be opened.
    """
    found = _limits()
    if found is None:
        return
    try:
        already = len(os.listdir("/dev/fd"))
    except OSError as error:
        if error.errno in _CODES:
            raise refused(error.errno) from None
        return
    if found[0] - already < needed:
        raise refused(errno.EMFILE)


def too_many_open_files(error: BaseException) -> TooManyOpenFiles | None:
    """Return what to tell of an error that came of too many open files, None for any other."""
    for cause in _causes(error):
        if isinstance(cause, TooManyOpenFiles):
            return cause
        if isinstance(cause, OSError) and cause.errno in _CODES:
            return refused(cause.errno)
        if isinstance(cause, RuntimeError | OSError) and any(sign in str(cause).lower() for sign in _SIGNS):
            return refused(errno.EMFILE)
    return None


def refused(code: int) -> TooManyOpenFiles:
    """Return the error that tells of EMFILE or ENFILE."""
    found = _limits()
    if code == errno.ENFILE or found is None:
        return TooManyOpenFiles(
            "the whole system has as many files open as it can (fs.file-max). End other programs, or lower "
            "data.workers."
        )
    return TooManyOpenFiles(f"{_limit_told(*found)}. {_way_out(*found)}, or lower data.workers.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised for, `from None` or not."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _limits() -> tuple[int, int] | None:
    """The limit of this process and how far it may raise it itself; None where the system has none."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    none = resource.RLIM_INFINITY
    return None if soft == none else (soft, max(soft, 2**31) if hard == none else hard)


def _limit_told(soft: int, hard: int) -> str:
    return f"the limit of open files is too low: this process may have {soft} open at once (ulimit -n)"


def _way_out(soft: int, hard: int) -> str:
    wanted = max(USUAL, 2 * soft)
    if hard <= soft:
        return f"Raise it first (ulimit -n {wanted}, in a new shell or by whoever administers this machine)"
    return f"Raise it first (ulimit -n {min(wanted, hard)})"
