"""Paths with braces and wildcards, written out one by one and only up to a limit."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from augury.errors import UsageError, brief

MOST_PATHS = 100_000
"""Paths that braces may stand for."""
MOST_ENTRIES = 100_000
"""Entries of folders that wildcards may look at."""


def expand(pattern: str, subject: str) -> Iterator[str]:
    """Yield the paths that a pattern names: `{000..012}` and `{a,b}` are written out, `*`, `?` and `[...]` are matched
    in folders, each within one part of the path. A path that exists is taken as it is written.

    Args:
        pattern: the path.
        subject: what messages call it.

    Raises:
        UsageError: the braces stand for more than `MOST_PATHS` paths, the wildcards look at more than `MOST_ENTRIES`
            entries, or a path does not exist.
    """
    budget = itertools.count(1)
    for path in _braces(pattern, subject):
        if os.path.exists(path):
            yield path
            continue
        matched = sorted(_matches(path, subject, budget)) if _is_wild(path) else []
        if not matched:
            raise UsageError(f"{subject}: {brief(path)} does not exist. Give a folder of shards, or a pattern of them.")
        yield from matched


def _braces(pattern: str, subject: str) -> Iterator[str]:
    """Yield the pattern with each of its braces' choices. They are counted first."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[part] if number % 2 == 0 else _choices(part) for number, part in enumerate(parts)]
    # `len` of a range that is longer than a C integer fails.
    count = math.prod(max(c.stop - c.start, 0) if isinstance(c, range) else len(c) for c in choices)
    if count > MOST_PATHS:
        raise UsageError(
            f"{subject}: the braces stand for more than {MOST_PATHS:,} paths, which is the limit. "
            "Name fewer shards, or give their folder."
        )
    widths = [len(part.partition("..")[0]) for part in parts]
    # One choice at a time: `itertools.product` would first make a list of each brace's.
    for number in range(count):
        words = []
        for choice, width in zip(reversed(choices), reversed(widths), strict=True):
            number, place = divmod(number, len(choice))
            word = choice[place]
            words.append(word if isinstance(word, str) else str(word).zfill(width))
        yield "".join(reversed(words))


def _choices(inside: str) -> Sequence[str] | range:
    """What stands in a pair of braces: whole numbers, or texts between commas."""
    if (bounds := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inside, re.ASCII)) is None:
        return inside.split(",")
    return range(int(bounds[1]), int(bounds[2]) + 1)


def _is_wild(path: str) -> bool:
    return re.search(r"[*?[]", path) is not None


def _matches(pattern: str, subject: str, budget: Iterator[int]) -> Iterator[str]:
    """Yield the existing paths that match, as `glob.glob` finds them; each entry looked at is taken off the budget."""
    folders = [Path(pattern).anchor]
    *above, last = Path(pattern).parts[1 if folders[0] else 0 :]
    for part in above:
        # Lists grow by what was looked at, which the budget bounds.
        folders = [found for folder in folders for found in _below(folder, part, subject, budget)]
    for folder in folders:
        yield from _below(folder, last, subject, budget)


def _below(folder: str, part: str, subject: str, budget: Iterator[int]) -> Iterator[str]:
    """Yield the entries of a folder that one part of a pattern matches."""
    if not _is_wild(part):
        if os.path.lexists(path := os.path.join(folder, part)):
            yield path
        return
    for name in _names(folder):
        if next(budget) > MOST_ENTRIES:
            raise UsageError(
                f"{subject}: its wildcards look at more than {MOST_ENTRIES:,} files and folders, which is the limit. "
                "Write more of the path out, or give the shards' folder."
            )
        # As for a shell, a wildcard does not match the dot of a hidden file.
        if fnmatchcase(name, part) and (part.startswith(".") or not name.startswith(".")):
            yield os.path.join(folder, name)


def _names(folder: str) -> Iterator[str]:
    """Yield the names in a folder; none of what is no folder, or may not be read."""
    try:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                yield entry.name
    except OSError:
        return
