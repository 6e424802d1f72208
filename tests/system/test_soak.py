"""Runs of `make soak`: killed for real at random points, resumed, and equal to their undisturbed twins."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests import soak

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("runs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_runs_survive(runs: int) -> None:
    command = [sys.executable, "-m", "tests.soak", "--runs", str(runs), "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"survived {runs}/{runs} in ")


def test_a_lost_run_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The comparison sees a difference of one bit, and a failure is told.
    monkeypatch.setattr(soak, "in_fork", lambda work, folder, errors, kill=None: 0)
    monkeypatch.setattr(soak, "assert_same_run", _differs)
    outcome = soak.soak_one(0, tmp_path)
    assert not outcome.survived
    assert "it differs from its twin" in outcome.reason


def _differs(one: Path, other: Path) -> None:
    raise AssertionError("rows differ")


def test_a_run_that_fails_is_told_with_its_exit_code_and_its_last_lines(tmp_path: Path) -> None:
    errors = tmp_path / "errors.txt"
    errors.write_text("of a run before")
    status = soak.in_fork(lambda: 1 / 0, tmp_path / "run", errors)
    told = soak._reason(status, errors).splitlines()
    assert (told[0], told[-1]) == ("it failed: exit code 1:", "ZeroDivisionError: division by zero")
    status = soak.in_fork(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path / "run", errors)
    assert soak._reason(status, errors) == "it failed: killed by SIGTERM, without a word"


@pytest.mark.parametrize(("rows", "wanted"), [(20, 0), (0, soak.HUNG)])
def test_a_slow_run_is_waited_for_as_long_as_its_folder_changes(
    rows: int, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_told() -> None:
        while not (tmp_path / "end").exists():
            threading.Event().wait(0.01)

    looks = itertools.count(1)

    def look(seconds: float) -> None:
        """Let a row come after half of the looks in vain that are the limit."""
        row, rest = divmod(next(looks), near)
        if not rest and row <= rows:
            (folder / "metrics.jsonl").write_text("row" * row)
        if rows and row == rows:
            (tmp_path / "end").touch()
            threading.Event().wait(0.01)

    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(soak, "SILENT", 2.0)
    near = int(0.5 * soak.SILENT / soak.POLL)
    monkeypatch.setattr(soak.time, "sleep", look)
    assert soak.in_fork(until_told, folder, tmp_path / "errors.txt") == wanted
