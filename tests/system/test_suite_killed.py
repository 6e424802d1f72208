"""A suite in a process of its own, killed twice for real, and resumed with the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from augury_cli.main import main

AUGURY = str(Path(sys.executable).with_name("augury"))
COMMAND = [
    "compare",
    "--dataset",
    "digits",
    "--with-each",
    "isda,resmooth",
    "--seeds",
    "1",
    "--output",
    "suite",
    "--set",
    "optim.epochs=6",
    "--set",
    "optim.batch_size=25",
    "--set",
    "optim.lr=0.03",
    "--set",
    "data.images_per_class=20",
    "--set",
    "train.trackers=[]",
    "--set",
    "device=cpu",
]


def start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen([AUGURY, *COMMAND, *more], cwd=folder, env=environment, stdout=-1, stderr=-1)


def kill_when(process: subprocess.Popen[bytes], there: Path, pattern: str) -> None:
    """Kill it as a power cut does, once a file is there."""
    deadline = time.monotonic() + 240
    while not list(there.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def table_of(folder: Path) -> Any:
    """The table without what the clock decides."""
    said = json.loads((folder / "suite" / "comparison.json").read_text())
    timed = {"seconds", "stage_seconds", "images_per_second", "peak_bytes"}
    return [{key: value for key, value in row.items() if key not in timed} for row in said["rows"]]


@pytest.mark.slow
def test_a_suite_killed_twice_gives_the_table_of_one_never_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = start(killed)
    kill_when(first, killed / "suite", "isda/seed-0/checkpoints/step-000000024-*.pt")
    second = start(killed, "--jobs", "1")
    # In the middle of a pre-train stage.
    kill_when(second, killed / "suite", "resmooth/seed-0/stages/resmooth/network-base/checkpoints/*.pt")
    assert not (killed / "suite" / "comparison.json").exists()
    third = start(killed)
    _, err = third.communicate(timeout=240)
    assert third.returncode == 0, err.decode()
    whole.mkdir()
    monkeypatch.chdir(whole)
    monkeypatch.setattr(sys, "argv", ["augury", *COMMAND])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert table_of(killed) == table_of(whole)
    assert (killed / "suite" / "comparison.md").exists()
    assert not list(killed.rglob("*.partial")), "what a kill cut short is written anew"
