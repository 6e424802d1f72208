"""The contract suite run on a method in a process of its own, and what it found."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augury.errors import UsageError

SUITE = "augury_authoring.testing.suite"
LIMIT = 900.0
"""Seconds after which a suite of which no check ended has hung."""
POLL = 0.2
"""Seconds that one look at it waits."""


@dataclass(frozen=True)
class Failure:
    """A check that a method did not pass.

    Attributes:
        check: its name.
        reason: what was found and where to look, several lines perhaps.
    """

    check: str
    reason: str


@dataclass(frozen=True)
class SuiteResult:
    """What the contract suite found of a method.

    Attributes:
        method: its name.
        passed, skipped: how many checks; a skipped one has nothing to check in this method, or waits for another.
        failed: those it did not pass; never empty where the suite could not be run to its end.
        seconds: that it took.
    """

    method: str
    passed: int
    failed: tuple[Failure, ...]
    skipped: int
    seconds: float


def run_suite(
    method: str,
    options: Mapping[str, Any] | None = None,
    reporter: Callable[[str], None] | None = None,
    *,
    quick: bool = False,
) -> SuiteResult:
    """Run the contract suite on an installed method in a fresh process, which imports it whether or not a register
    lists it.

    Args:
        method: its name.
        options: to test it with, as JSON has them; its defaults when None.
        reporter: told each check's name when it is over.
        quick: leave out two processes and other methods, which take longest.

    Raises:
        UsageError: pytest is not installed.
    """
    if importlib.util.find_spec("pytest") is None:
        raise UsageError("the contract suite needs pytest. Install it with pip install pytest.")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "results.jsonl"
        with (folder / "output.txt").open("w+", encoding="utf-8") as output:
            process = subprocess.Popen(
                _command(method, options or {}, rows, quick),
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                found = list(_follow(process, rows, reporter))
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            said = output.read()
    return _result(method, found, process.returncode, said, time.perf_counter() - started)


def _command(method: str, options: Mapping[str, Any], rows: Path, quick: bool) -> list[str]:
    given = ["--augury-method", method, "--augury-options", json.dumps(dict(options)), "--augury-results", str(rows)]
    if quick:
        given.append("--augury-quick")
    # No settings and no plugins but ours: the result is the method's.
    alone = ["-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "-p", "augury_authoring.testing.plugin"]
    return [sys.executable, "-m", "pytest", "--pyargs", SUITE, "-q", *alone, *given]


def _environment() -> dict[str, str]:
    """This process's, without what would change the run of pytest."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    return kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}


def _follow(
    process: subprocess.Popen[bytes], rows: Path, reporter: Callable[[str], None] | None
) -> Iterator[dict[str, str]]:
    """The rows that the plugin writes, as they come, until the process ends or has hung."""
    read, silent = 0, 0.0
    while True:
        try:
            over = process.wait(timeout=POLL) is not None
        except subprocess.TimeoutExpired:
            over = False
            silent += POLL
        text = rows.read_text(encoding="utf-8") if rows.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        for line in lines[read:]:
            row = json.loads(line)
            if reporter is not None:
                reporter(row["check"])
            yield row
            silent = 0.0
        read = len(lines)
        if over or silent > LIMIT:
            return


def _result(method: str, rows: list[dict[str, str]], code: int, said: str, seconds: float) -> SuiteResult:
    counts = {kind: sum(row["outcome"] == kind for row in rows) for kind in ("passed", "skipped")}
    failed = [Failure(row["check"], row["reason"]) for row in rows if row["outcome"] == "failed"]
    # 0 and 1: pytest ran to its end.
    if code not in (0, 1) and not failed or not rows:
        last = "\n".join(said.strip().splitlines()[-15:])
        # The suite that has hung was killed.
        hung = code == -signal.SIGKILL and seconds > LIMIT
        after = f" after {rows[-1]['check']}" if rows else ""
        why = f"no check ended for {LIMIT:.0f} s{after}" if hung else f"pytest ended with code {code}{after}"
        failed.append(Failure("suite", f"{method}: the suite could not be run to its end: {why}.\n{last}"))
    return SuiteResult(method, counts["passed"], tuple(failed), counts["skipped"], seconds)
