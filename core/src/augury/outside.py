"""What anybody may have made: files, settings and folders from elsewhere, read whole, small and plain, or refused."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from augury.errors import HIDDEN, UsageError, shown

WRITTEN = 2**20
"""Bytes of a file that people write: settings, registers, suites."""
RECORDED = 2**27
"""Bytes of a file that programs write: rows of metrics, tables, subsets."""
DEEPEST = 32
"""Tables and lists inside each other."""
LONGEST = 10_000
"""Characters of a text, bytes of a path included."""

# tomllib takes the square of the number of parts of a dotted key: 500,000 fit into a file of that size.
_WORD = r"(?:[\w-]++|\"[^\"\n]*+\"|'[^'\n]*+')"
_LONG_KEY = re.compile(rf"(?<![\w\"'-]){_WORD}(?:[ \t]*+\.[ \t]*+{_WORD}){{{DEEPEST},}}")


def read_text(path: Path, most: int = WRITTEN) -> str:
    """Read a file of text, with or without a byte order mark.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no regular file, too large, or not UTF-8.
    """
    content = read_bytes(path, most)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text ({error.reason} at byte {error.start})") from None


def read_bytes(path: Path, most: int = WRITTEN) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no regular file (reading a pipe would never end), or too large.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return content


def parse_json(text: str) -> Any:
    """Read JSON; what is wrong in it, or nested too deeply, is a `ValueError`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Read TOML; what is wrong in it, or nested too deeply, is a `ValueError`."""
    if _LONG_KEY.search(text):
        raise ValueError(f"a key has more than {DEEPEST} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def oddity(value: Any) -> str | None:
    """What is odd about settings that were read from a file: `key` and why, None where nothing is.

    JSON and TOML can say what no setting means and what later would fail far from its cause: control characters (a
    message would bring them to the terminal), numbers that no tensor holds, dates, endless texts.
    """
    for path, depth, found in _values(value):
        if why := _odd(found, depth):
            return f"key `{path}` {why}" if path else why
    return None


def _values(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, int, Any]]:
    yield path, depth, value
    if depth > DEEPEST:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield path, depth, key
            yield from _values(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _values(inner, f"{path}.{number}", depth + 1)


def _odd(value: Any, depth: int) -> str:
    if depth > DEEPEST:
        return "is nested too deeply"
    if isinstance(value, str):
        if len(value) > LONGEST:
            return f"has a text of {len(value):,} characters; {LONGEST:,} are allowed"
        # Names of files that are no UTF-8 come as lone surrogates.
        found = HIDDEN.search(re.sub("[\udc80-\udcff]", "", value))
        return f"holds the character U+{ord(found[0]):04X}, which cannot be seen. Take it out" if found else ""
    if isinstance(value, bool) or value is None or isinstance(value, Mapping | list):
        return ""
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else "holds a whole number of more than 64 bits"
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"must be a finite number, got {value}"
    return f"holds a {type(value).__name__}. Write it as text, in quotes"


def with_home(text: str) -> str:
    """Write out the home folder that a path begins with, `~` or `~somebody`. Return any other text unchanged."""
    try:
        return os.path.expanduser(text)
    except ValueError:
        # No user has a NUL in the name.
        return text


def given_path(place: str | Path, subject: str) -> Path:
    """Return the path that a user gave, with its home folder written out. It need not exist.

    Args:
        place: the path.
        subject: what an error begins with.

    Raises:
        UsageError: the path is empty, too long or has impossible characters, its links lead in a circle,
            or it is there and may not be read.
    """
    text = os.fspath(place)
    path = Path(with_home(text))
    try:
        if not text:
            raise ValueError("it is empty")
        os.stat(path)
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (FileNotFoundError, NotADirectoryError):
        return path
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{subject}: the path {shown(text)} cannot be used ({why}). Give another one.") from None
    return path
