"""The errors that users see: what it is about, what it got, what is allowed, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AuguryError(Exception):
    """Something failed while running. The command line prints the message alone and exits with 1."""

    exit_code = 1


class UsageError(AuguryError, ValueError):
    """Something was asked for that cannot be. The command line prints the message alone and exits with 2."""

    exit_code = 2


class MethodError(AuguryError):
    """A method raised inside one of its hooks; the message names both, `__cause__` is what it raised."""


def refuse_all(problems: list[str]) -> None:
    """Raise one `UsageError` that lists every problem on a line of its own; do nothing when there is none."""
    if problems:
        raise UsageError("\n".join(problems))


def unknown(kind: str, name: str, known: Iterable[str], *, label: str = "Known") -> str:
    """Say that `name` is no `kind`, list what is, and offer the nearest spelling."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} `{name}`. {label}: {listed}." + (f" Did you mean `{near[0]}`?" if near else "")
