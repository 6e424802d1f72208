"""A run that was killed or interrupted goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

AUGURY = str(Path(sys.executable).with_name("augury"))
# Stage, mixing with a coin, running statistics, a Q-network, dropout: all the state there is.
SETTINGS = (
    "data.images_per_class=10",
    "optim.batch_size=25",
    "optim.epochs=6",
    "device=cpu",
    "model.kwargs={drop_rate=0.2}",
)
METHODS = "resmooth", "dcutmix:prob=0.5", "isda", "agmax"
TIMES = ("train_seconds", "images_per_second")


def command(folder: Path) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    methods = [part for method in METHODS for part in ("--with", method)]
    return [AUGURY, "run", *sets, *methods, "--output", str(folder)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(folder), check=True, capture_output=True, env=environment())
    return folder


def stop(folder: Path, number: signal.Signals, ready: Callable[[], bool]) -> subprocess.Popen[str]:
    """Start a run and send it a signal once `ready`."""
    process = subprocess.Popen(command(folder), env=environment(), stderr=subprocess.PIPE, text=True)
    while not ready():
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate()
    return process


def same(one: Path, other: Path) -> None:
    differing = [
        (a["epoch"], key) for a, b in zip(rows(one), rows(other), strict=True) for key in a if a[key] != b.get(key)
    ]
    assert not differing
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def resume(folder: Path) -> str:
    done = subprocess.run([AUGURY, "resume", str(folder)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit_the_same(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert stop(folder, signal.SIGKILL, lambda: len(rows(folder)) >= 3).returncode == -signal.SIGKILL
    assert 3 <= len(rows(folder)) < 6
    assert not (folder / "result.json").exists()
    resume(folder)
    same(whole, folder)


@pytest.mark.slow
def test_interrupted_in_the_middle_of_an_epoch_and_resumed_is_the_same(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = stop(folder, signal.SIGINT, lambda: len(rows(folder)) >= 2)
    assert process.returncode == 130
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    assert torch.load(newest, weights_only=True)["loop"]["step"] > 0, "the checkpoint is of the step, not of the epoch"
    resume(folder)
    same(whole, folder)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(whole: Path) -> None:
    before = (whole / "last.safetensors").stat().st_mtime_ns
    assert "test top-1" in resume(whole)
    assert (whole / "last.safetensors").stat().st_mtime_ns == before
