"""Distillation with the installed command: from a run of another architecture, killed, and resumed without it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.train.small_runs import assert_same_run, rows_of

AUGURY = str(Path(sys.executable).with_name("augury"))
SHORT = ("data.images_per_class=20", "optim.batch_size=25", "device=cpu", "train.trackers=[]")
pytestmark = pytest.mark.slow


def command(folder: Path, *words: str) -> list[str]:
    return [AUGURY, "run", *(part for key in SHORT for part in ("--set", key)), *words, "--output", str(folder)]


def started(order: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(order, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(order: list[str]) -> None:
    process = started(order)
    _, told = process.communicate()
    assert process.returncode == 0, told


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images normalised otherwise than the students'."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    other = ("--set", "data.mean=[0.5]", "--set", "data.std=[0.25]", "--set", "optim.epochs=1")
    done(command(folder, "--dataset", "digits", "--model", "resnet20_cifar", *other))
    return folder


def student(teacher: Path) -> tuple[str, ...]:
    """A run of another architecture with draws, covariances and dropout: all that must be found again."""
    return (
        *("--dataset", "digits", "--model", "resnet32_cifar", "--set", "model.kwargs={drop_rate=0.2}"),
        *("--with", "dcutmix:prob=0.5", "--with", "isda", "--with", f"distill:teacher={teacher},temperature=2"),
        *("--set", "optim.epochs=3", "--save-every", "1"),
    )


@pytest.fixture(scope="module")
def whole(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done(command(folder, *student(teacher)))
    return folder


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_goes_on_without_its_teacher(
    teacher: Path, whole: Path, tmp_path: Path, kill: signal.Signals
) -> None:
    place, broken = tmp_path / "teacher", tmp_path / "broken"
    shutil.copytree(teacher, place)
    process = started(command(broken, *student(place)))
    # Its rows come at the ends of epochs.
    while not (broken / "metrics.jsonl").exists() or not rows_of(broken):
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(kill)
    process.communicate()
    assert len(rows_of(broken)) < 3
    shutil.rmtree(place)
    done([AUGURY, "resume", str(broken)])
    assert_same_run(whole, broken)
    assert all(row["distill/divergence"] > 0 for row in rows_of(broken))
    (kept,) = (broken / "networks").iterdir()
    assert kept.suffix == ".safetensors"


def test_the_recipe_runs_from_a_teacher_that_is_named(teacher: Path, tmp_path: Path) -> None:
    words = ("--recipe", "distill/digits", "--set", f"methods.distill.teacher={teacher}", "--set", "optim.epochs=1")
    done(command(tmp_path / "run", *words))
    said = json.loads((tmp_path / "run" / "config.json").read_text())["methods"]
    assert said == [
        {"name": "distill", "options": {"teacher": str(teacher), "temperature": 4.0, "weight": 0.9}},
    ]
    (row,) = rows_of(tmp_path / "run")
    assert row["distill/divergence"] > 0


def test_a_teacher_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    process = started(command(tmp_path / "run", "--recipe", "distill/digits"))
    _, told = process.communicate()
    assert process.returncode == 2, told
    assert "distill: option `teacher`: runs/teacher: no such file or folder" in told
    assert "Traceback" not in told
    assert not (tmp_path / "run").exists()


def test_two_processes_train_as_one_file_is_read(teacher: Path, tmp_path: Path) -> None:
    place = tmp_path / "teacher"
    shutil.copytree(teacher, place)
    words = ("--dataset", "digits", "--with", f"distill:teacher={place}", "--processes", "2", "--set", "optim.epochs=1")
    done(command(tmp_path / "run", *words, "--set", "optim.batch_size=24"))
    (row,) = rows_of(tmp_path / "run")
    assert row["distill/divergence"] > 0
    assert [path.suffix for path in (tmp_path / "run" / "networks").iterdir()] == [".safetensors"]
