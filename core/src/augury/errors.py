"""The errors that users see: what it is about, what it got, what is allowed, what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that steer a terminal, hide or turn round what stands beside them, or cannot be printed."""
LINES, LETTERS = 40, 4000
"""Of a message, and of each of its lines."""
LONGEST_NAME = 100
"""Letters of a name that no one knows; looking for what is near it takes their square."""


def plain(text: str) -> str:
    """The text with such characters written out, \\x1b say; line breaks stay."""
    return HIDDEN.sub(lambda found: found[0] if found[0] == "\n" else _written(found[0]), text)


def one_line(text: str) -> str:
    """The same in one line that no quotation fills, for what is told beside errors."""
    return plain(_cut(" ".join(text.split("\n"))))


def _cut(line: str) -> str:
    """Cut a line in the middle: what is wrong is often said at its end."""
    return line if len(line) <= LETTERS else f"{line[: LETTERS * 3 // 4]}...{line[-LETTERS // 4 :]}"


def _written(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def brief(text: str) -> str:
    """Cut a text that a message begins with, so that what the message says of it is still read."""
    return text if len(text) <= 2 * LONGEST_NAME else f"{text[: 2 * LONGEST_NAME]}..."


def shown(value: object) -> str:
    """The beginning of a value as a message quotes it, of whatever size and depth it is."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that cannot be printed"


def counted(count: int, what: str) -> str:
    """Return a number with its noun, in the plural where that is wanted."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


class AuguryError(Exception):
    """Something failed while running. The command line prints the message alone and exits with 1."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, in which nothing that it quotes reaches the terminal raw or fills it."""
        lines = super().__str__().split("\n")
        shown = [_cut(line) for line in lines[:LINES]]
        more = [f"... and {len(lines) - LINES} more lines."] if len(lines) > LINES else []
        return plain("\n".join(shown + more))


class UsageError(AuguryError, ValueError):
    """Something was asked for that cannot be. The command line prints the message alone and exits with 2."""

    exit_code = 2


class RunError(AuguryError):
    """Something beside the program failed during a run (the disk, an image, a process), and the run can go on when that
    is mended."""


class MethodError(AuguryError):
    """A method raised inside one of its hooks; the message names both, `__cause__` is what it raised."""


def refuse_all(problems: list[str]) -> None:
    """Raise one `UsageError` that lists every problem on a line of its own; do nothing when there is none."""
    if problems:
        raise UsageError("\n".join(problems))


def unknown(kind: str, name: str, known: Iterable[str], *, label: str = "Known") -> str:
    """Say that `name` is no `kind`, list what is, and offer the nearest spelling."""
    names = sorted(known)
    name = " ".join(name[:LONGEST_NAME].split()) + ("..." if len(name) > LONGEST_NAME else "")
    near = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} `{name}`. {label}: {listed}." + (f" Did you mean `{near[0]}`?" if near else "")
