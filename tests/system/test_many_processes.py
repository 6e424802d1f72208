"""Whole runs of several processes, started as users start them: one result, one voice, and no process left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
AUGURY = str(BIN / "augury")
# 54 test and 126 validation images for two processes; stage, coin, running statistics, Q-network.
SETTINGS = "data.images_per_class=10", "optim.batch_size=26", "device=cpu", "train.trackers=[]"
METHODS = "resmooth", "dcutmix:prob=0.5", "isda", "agmax"
TIMES = ("train_seconds", "images_per_second")
LIMIT = 240
USUAL = ("data ", "classes ", "model ", "methods ", "epoch")
"""How the lines begin that every run writes."""
EPOCHS = 8
"""So many that one which is stopped after the first has not come to its end."""


def words(folder: Path, epochs: int = EPOCHS, methods: tuple[str, ...] = METHODS, *more: str) -> list[str]:
    sets = [part for setting in (*SETTINGS, f"optim.epochs={epochs}", *more) for part in ("--set", setting)]
    return ["run", *sets, *(part for method in methods for part in ("--with", method)), "--output", str(folder)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def call(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=LIMIT)


def rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def same(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    for name in ("last.safetensors", "best.safetensors"):
        expected, found = load_file(one / name), load_file(other / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def started(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(folder: Path, written: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + LIMIT
    while len(rows(folder)) < written:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def begun(folder: Path, *command: str, epochs: int = 1) -> tuple[subprocess.Popen[str], dict[str, psutil.Process]]:
    """A run of several processes that has written some rows more, and its processes by rank."""
    process = started(command)
    wait_for(folder, len(rows(folder)) + epochs, process)
    return process, {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}


def ended(process: subprocess.Popen[str], members: dict[str, psutil.Process]) -> str:
    """What it said on stderr, when it and its processes are gone."""
    _, err = process.communicate(timeout=LIMIT)
    assert not psutil.wait_procs(members.values(), timeout=LIMIT)[1]
    return err


@pytest.mark.slow
def test_one_that_dies_ends_the_others_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process, members = begun(folder, AUGURY, *words(folder, 500, ("isda",)), "--processes", "2", epochs=2)
    members["1"].kill()
    err = ended(process, members)
    assert process.returncode == 137
    told = [line for line in err.splitlines() if not line.startswith(USUAL)]
    assert len(told) == 1, err
    assert told[0].startswith("process 1 of 0 to 1 was ended by SIGKILL")
    assert told[0].endswith(f"Go on with: augury resume {folder} --processes 2")
    epochs = [int(line.split()[1]) for line in err.splitlines() if line.startswith("epoch")]
    assert epochs, "one process speaks"
    written = [row["epoch"] for row in rows(folder)]
    assert written == list(range(1, len(written) + 1)), "and one writes"
    # A row is written before its epoch's checkpoint, and told after that.
    assert epochs == written[: len(epochs)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = call(AUGURY, *words(folder), "--processes", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs"] == EPOCHS, "one process prints"
    return folder


@pytest.mark.slow
def test_a_run_of_two_processes_is_one_run(whole: Path) -> None:
    assert [row["epoch"] for row in rows(whole)] == list(range(1, EPOCHS + 1))
    result = json.loads((whole / "result.json").read_text())
    for split, images in (("val", 126), ("test", 540)):
        right = result["last"][split]["top1"] * images / 100
        assert right == pytest.approx(round(right), abs=1e-6), "each image counts once"
    assert rows(whole)[-1]["val_top1"] == pytest.approx(result["last"]["val"]["top1"])
    assert not list(whole.rglob("*.partial"))


@pytest.mark.slow
def test_asked_to_stop_it_writes_a_checkpoint_and_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process, members = begun(folder, AUGURY, *words(folder), "--processes", "2")
    process.send_signal(signal.SIGTERM)
    err = ended(process, members)
    assert process.returncode == 143
    assert err.count(f"Go on with: augury resume {folder} --processes 2") == 1
    done = call(AUGURY, "resume", str(folder), "--processes", "2")
    assert done.returncode == 0, done.stderr
    same(whole, folder)


@pytest.mark.slow
def test_killed_at_once_it_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process, members = begun(folder, AUGURY, *words(folder), "--processes", "2")
    # The one that started them: they end with it.
    process.kill()
    ended(process, members)
    done = call(AUGURY, "resume", str(folder), "--processes", "2")
    assert done.returncode == 0, done.stderr
    same(whole, folder)


def handles(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has begun to take a signal by itself."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    found = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what a process is ready for")
@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_starts_it_says_so_in_a_line(processes: str, number: signal.Signals, tmp_path: Path) -> None:
    for seconds in (0, 0.2, 0.5, 1, 2, 4):
        # So long that it has not come to its end.
        process = started([AUGURY, *words(tmp_path / f"{seconds}", 10_000, ()), "--processes", processes])
        until = time.monotonic() + LIMIT
        while not handles(process, signal.SIGTERM):
            assert time.monotonic() < until
        time.sleep(seconds)
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT)
        assert process.returncode == 128 + number, (seconds, err)
        told = [line for line in err.splitlines() if not line.startswith(USUAL)]
        assert not told or (len(told) == 1 and told[0].startswith("interrupted")), (seconds, err)


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [("1", "2"), ("2", "1")])
def test_another_number_of_processes_goes_on_and_says_what_is_not_exact(
    before: str, after: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = started([AUGURY, *words(folder), "--processes", before])
    wait_for(folder, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, err
    done = call(AUGURY, "resume", str(folder), "--processes", after)
    assert done.returncode == 0, done.stderr
    assert f"begun with {before} process(es), goes on with {after}" in done.stderr
    assert [row["epoch"] for row in rows(folder)] == list(range(1, EPOCHS + 1))


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


HASTY = """
from augury_train.training import waiting
waiting.PATIENCE = 3.0
from augury_cli.__main__ import start
start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_is_stopped_is_told_while_the_others_wait(stopped: int, tmp_path: Path) -> None:
    folder, said = tmp_path / "run", [tmp_path / f"said-{rank}" for rank in range(2)]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = []
    for rank in range(2):
        with said[rank].open("w") as file:
            own = {**environment(), **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-c", HASTY, *words(folder, 5000, ())]
            processes.append(subprocess.Popen(command, env=own, stderr=file))
    try:
        wait_for(folder, 1, processes[0])
        assert "has not answered" not in said[0].read_text() + said[1].read_text()
        processes[stopped].send_signal(signal.SIGSTOP)
        told = f"process {stopped} of 0 to 1 has not answered for 3 s, and the others wait for it: it may be stopped"
        until = time.monotonic() + LIMIT
        while told not in said[1 - stopped].read_text():
            assert processes[1 - stopped].poll() is None, "it goes on waiting"
            assert time.monotonic() < until
            time.sleep(0.1)
        processes[stopped].send_signal(signal.SIGCONT)
        wait_for(folder, len(rows(folder)) + 2, processes[0])
        for process in processes:
            process.send_signal(signal.SIGTERM)
        assert [process.wait(LIMIT) for process in processes] == [143, 143]
        assert said[1 - stopped].read_text().count(told) == 1
    finally:
        for process in processes:
            process.kill()
            process.wait()


def torchrun(*command: str) -> list[list[str]]:
    return [
        [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", free_port(), "-m", "augury_cli", *command]
    ]


def two_nodes(*command: str) -> list[list[str]]:
    address = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    return [
        [str(BIN / "torchrun"), *address, "--node-rank", str(node), "-m", "augury_cli", *command] for node in range(2)
    ]


def accelerate(*command: str) -> list[list[str]]:
    # On the CPU alone it starts several processes with MPI only; so it is told of GPUs, which nobody uses.
    said = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    return [
        [str(BIN / "accelerate"), "launch", *said, "--main_process_port", free_port(), "-m", "augury_cli", *command]
    ]


def accelerate_on_two(*command: str) -> list[list[str]]:
    said = ["--multi_gpu", "--num_processes", "2", "--num_machines", "2", "--mixed_precision", "no"]
    said += ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    return [
        [str(BIN / "accelerate"), "launch", *said, "--machine_rank", str(node), "-m", "augury_cli", *command]
        for node in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [torchrun, two_nodes, accelerate, accelerate_on_two])
def test_other_launchers_give_the_same_run(
    launcher: Callable[..., list[list[str]]], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    running = [started(command) for command in launcher(*words(folder))]
    said = [process.communicate(timeout=LIMIT) for process in running]
    assert [process.returncode for process in running] == [0] * len(running), said
    assert sum(out.count("test top-1") for out, _ in said) == 2, "of the best and of the last epoch, once"
    same(whole, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["optim.batch_size=25"],
            r"optim\.batch_size=25 must be a multiple of 2 processes times optim\.accumulation=1\.",
        ),
        (["optim.batchsize=26"], r"config: optim: unknown key `batchsize`"),
    ],
)
def test_a_refusal_comes_once_and_before_anything_is_written(settings: list[str], told: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = call(AUGURY, *words(folder, 1, (), *settings), "--processes", "2")
    assert done.returncode == 2, done.stderr
    assert len(re.findall(told, done.stderr)) == 1
    assert not folder.exists()


@pytest.mark.slow
def test_a_folder_that_exists_is_refused_once(whole: Path) -> None:
    done = call(AUGURY, *words(whole), "--processes", "2")
    assert done.returncode == 2
    assert done.stderr.count("exists. Continue it with") == 1


@pytest.mark.slow
def test_commands_of_one_process_say_so(whole: Path) -> None:
    (command,) = torchrun("report", str(whole))
    done = call(*command)
    assert done.returncode != 0
    assert done.stderr.count("augury report works in one process, and this is one of 2. Start it alone.") == 1


OWN = """
import sys, torch, augury
from augury.distributed import Ranks
from augury_train.training.trainer import Trainer
kept = {}
begin = Trainer.run
def run(self, *arguments, **named):
    drawn = []
    augment = self.methods.augment_batch
    def watched(batch):
        augment(batch)
        if len(drawn) < 4: drawn.append(batch.shares[:, 0].clone())
    self.methods.augment_batch = watched
    result = begin(self, *arguments, **named)
    torch.save({"network": self.network.state_dict(), "drawn": drawn}, f"{sys.argv[2]}-{self.ranks.rank}.pt")
    return result
Trainer.run = run
result = augury.train(["dcutmix:prob=1.0"], settings={"device": "cpu", "optim.epochs": 1, "optim.batch_size": 26,
    "data.images_per_class": 10, "train.trackers": []}, folder=sys.argv[1], progress=False)
print("top-1", result.best["val"].top1)
"""


@pytest.mark.slow
def test_weights_are_the_same_in_both_and_draws_are_not(tmp_path: Path) -> None:
    program = tmp_path / "own.py"
    program.write_text(OWN)
    done = call(
        *(str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", free_port(), str(program)),
        *(str(tmp_path / "run"), str(tmp_path / "found")),
    )
    assert done.returncode == 0, done.stderr
    assert len(set(re.findall(r"top-1 .*", done.stdout))) == 1, "both have the result"
    one, other = (torch.load(tmp_path / f"found-{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(one["network"], other["network"], rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(one["drawn"], other["drawn"], strict=True))
