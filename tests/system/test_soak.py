"""Runs of `make soak`: killed for real at random points, resumed, and equal to their undisturbed twins."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("runs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_runs_survive(runs: int) -> None:
    command = [sys.executable, "-m", "tests.soak", "--runs", str(runs), "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(f"survived {runs}/{runs} in ")


def test_a_lost_run_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The comparison sees a difference of one bit, and a failure is told.
    from tests import soak

    monkeypatch.setattr(soak, "in_fork", lambda work, errors, kill=None: 0)
    monkeypatch.setattr(soak, "assert_same_run", _differs)
    outcome = soak.soak_one(0, tmp_path)
    assert not outcome.survived
    assert "it differs from its twin" in outcome.reason


def _differs(one: Path, other: Path) -> None:
    raise AssertionError("rows differ")
