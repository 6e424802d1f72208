"""Memory that runs out: what is told, and that a run goes on with fewer images at once."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.train.breaking import Greedy, Normed, Passing
from tests.train.small_runs import StopsAfter, assert_same_run, small
from torch import nn

import augury
from augury.errors import AuguryError, MethodError, UsageError
from augury.registry import Register
from augury_train import backbones
from augury_train.training import shortage, trainer
from augury_train.training.checkpoint import load_checkpoint
from augury_train.training.plan import make_plan
from augury_train.training.shortage import ran_out, within_memory
from augury_train.training.trainer import resume, train
from augury_train.training.watch import Interrupted, Silent


class Partly(augury.Method):
    """Mixes, and says that something of it is a whole batch's."""

    mixes = True
    batchwise = "its norm is that of a part"

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        rows = batch.permutation(run.generator)
        sources = torch.stack([torch.arange(len(batch)), rows], 1)
        batch.mix((batch.images + batch.images[rows]) / 2, sources, torch.full((len(batch), 2), 0.5))


class NeedsRows(augury.Method):
    min_rows = 10

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        assert len(batch) >= 10


class Heard(Silent):
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def register() -> Register:
    found = Register.load().offering("partly", Partly).offering("needsrows", NeedsRows)
    return found.offering("passing", Passing)


def config_of(*methods: str, auto: bool = False, **optim: Any) -> augury.RunConfig:
    optim = {"batch_size": 24, **optim}
    return small(*methods, optim=optim, train={"auto_batch": auto, "trackers": []})


def networks(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    """Let all runs train copies of this one."""

    def builds(*_: Any) -> nn.Module:
        return copy.deepcopy(network)

    monkeypatch.setattr(backbones, "build", builds)
    # A picture of the first batch takes longer than all the rest.
    monkeypatch.setattr(trainer.Trainer, "_draw_batch", lambda self, batch: None)


def stopped_after(steps: int, config: augury.RunConfig, folder: Path) -> None:
    """Train, and stop after so many steps, those before memory ran out among them."""
    reporter, build = StopsAfter(steps), trainer.Trainer

    def stopping(*given: Any, **how: Any) -> trainer.Trainer:
        reporter.trainer = build(*given, **how)
        return reporter.trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Trainer", stopping)
        with pytest.raises(Interrupted):
            train(config, folder, register=register(), reporter=reporter)


def test_without_leave_the_sizes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks(monkeypatch, Greedy(12, since=5))
    with pytest.raises(AuguryError) as caught:
        train(config_of("agmax"), tmp_path / "run")
    said = str(caught.value)
    assert said.startswith(
        "training: step 6: the memory of this machine ran out with 24 images at once of 2 views, 48 rows "
        "(optim.batch_size=24, optim.accumulation=1): CUDA out of memory. Tried to allocate 2.00 GiB.\nStart anew with "
        "--set optim.accumulation=2"
    ), said
    assert "--auto-batch" in said
    assert said.endswith(f"augury resume {tmp_path / 'run'}")


def test_images_at_once_are_halved_until_they_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks(monkeypatch, Greedy(6))
    heard = Heard()
    methods = ["passing", "partly"]
    result = train(config_of(*methods, auto=True), tmp_path / "auto", register=register(), reporter=heard)
    train(config_of(*methods, accumulation=4), tmp_path / "four", register=register())
    assert_same_run(tmp_path / "auto", tmp_path / "four")
    told = [line for line in result.notes if "memory ran out" in line]
    assert [line for line in heard.lines if "memory ran out" in line] == told
    assert told == [
        f"training: step 1: memory ran out with {many} images at once; from the last checkpoint on {few} pass at once, "
        f"optim.accumulation={24 // few} (train.auto_batch). What differs from whole batches: BatchNorm's statistics "
        f"are those of {few} images; partly: what is mixed are images of one part; partly: its norm is that of a part; "
        "rounding, and draws of dropout and of methods."
        for many, few in ((24, 12), (12, 6))
    ]
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["optim"]["accumulation"] == 1


@pytest.mark.slow
def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Greedy(12, since=6)
    networks(monkeypatch, network)
    train(config_of("passing", auto=True), tmp_path / "auto", register=register())
    network.most = 24
    stopped_after(4, config_of("passing"), tmp_path / "by hand")
    path = tmp_path / "by hand" / "config.json"
    settings = json.loads(path.read_text())
    settings["optim"]["accumulation"] = 2
    path.write_text(json.dumps(settings))
    resume(tmp_path / "by hand", register=register())
    assert_same_run(tmp_path / "auto", tmp_path / "by hand")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 4, 6])
def test_a_resumed_run_passes_as_few_images_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    networks(monkeypatch, Greedy(6))
    whole = train(config_of("passing", auto=True), tmp_path / "whole", register=register())
    stopped_after(steps, config_of("passing", auto=True), tmp_path / "parts")
    found: list[int] = []
    with_half = shortage._with_half
    monkeypatch.setattr(shortage, "_with_half", lambda *given: found.append(1) or with_half(*given))
    result = resume(tmp_path / "parts", register=register())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not found, "memory did not run out once more"
    assert [line for line in result.notes if "memory" in line] == [line for line in whole.notes if "memory" in line]
    state = load_checkpoint(tmp_path / "parts")
    assert state is not None
    assert state["accumulation"] == 4


@pytest.mark.slow
def test_a_pre_train_stage_goes_on_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks(monkeypatch, Greedy(12))
    result = train(config_of("resmooth", auto=True, epochs=1), tmp_path / "auto")
    train(config_of("resmooth", accumulation=2, epochs=1), tmp_path / "two")
    assert_same_run(tmp_path / "auto", tmp_path / "two")
    (told,) = [line for line in result.notes if "memory ran out" in line]
    assert told.startswith("resmooth: pre-train stage: step 1: memory ran out with 24 images at once")
    assert "the pipelines' shares are rounded to whole rows of a part" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "optim", "most", "told"),
    [
        ("passing", {}, 2, "optim.batch_size=24 cannot be halved further: 3 image(s) are no even number."),
        ("passing", {"batch_size": 2}, 0, "optim.batch_size=2 cannot be halved further: 1 image(s)"),
        ("needsrows", {}, 6, "It cannot be halved further: needsrows needs at least 10 rows."),
    ],
)
def test_what_cannot_be_halved_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, optim: dict[str, Any], most: int, told: str
) -> None:
    networks(monkeypatch, Greedy(most))
    with pytest.raises(AuguryError) as caught:
        train(config_of(method, auto=True, **optim), tmp_path / "run", register=register())
    assert told in str(caught.value)
    assert "Choose a smaller model, or smaller images (data.image_size)." in str(caught.value)


def test_what_can_be_halved() -> None:
    plan = make_plan(config_of("needsrows", batch_size=20), register())
    assert shortage._no_half(plan, 1) == ""
    assert shortage._no_half(dataclasses.replace(plan, config=config_of(batch_size=18)), 1).endswith(
        "at least 10 rows."
    )
    assert shortage._no_half(dataclasses.replace(plan, config=config_of(batch_size=18)), 2) == ""
    odd = dataclasses.replace(plan, config=config_of(accumulation=8))
    assert shortage._no_half(odd, 4).endswith("3 image(s) are no even number.")


def test_outside_of_steps_no_smaller_batch_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks(monkeypatch, Normed())

    def evaluate(*given: Any) -> dict[str, float]:
        raise MemoryError

    monkeypatch.setattr(trainer.Trainer, "_evaluate", evaluate)
    with pytest.raises(AuguryError, match=r"training: outside of its steps: .*: MemoryError.\nNo smaller batch helps"):
        train(config_of(auto=True), tmp_path / "run")


def test_several_processes_are_refused() -> None:
    plan = SimpleNamespace(config=config_of(auto=True))
    two: Any = SimpleNamespace(ranks=SimpleNamespace(size=2))
    with pytest.raises(UsageError, match=r"train.auto_batch goes with one process.*--set optim.accumulation=2"):
        within_memory(lambda plan: two, plan, Path("run"))  # type: ignore[arg-type]


def test_what_counts_as_a_shortage() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert ran_out(caught.value)
    assert shortage._torchs_words(caught.value) == "can't allocate memory: you tried to allocate 4503599627370496 bytes"
    error = MethodError("one: `augment_batch` raised OutOfMemoryError")
    assert not ran_out(error)
    error.__cause__ = torch.OutOfMemoryError("CUDA out of memory.")
    assert ran_out(error)
    assert ran_out(MemoryError())
    assert not ran_out(RuntimeError("shapes do not fit"))
    assert not ran_out(KeyError("out of memory"))


PROGRAM = """
import resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from augury_train.config import read_config
from augury_train.training import trainer

limit, auto, folder = int(sys.argv[1]), sys.argv[2] == "auto", Path(sys.argv[3])
config = read_config({
    "device": "cpu", "data": {"dataset": "synthetic:classes=4,size=16,images=2600", "loader": "memory"},
    "model": {"name": "resnet20_cifar"}, "optim": {"epochs": 1, "batch_size": 1024, "lr": 0.01},
    "train": {"trackers": [], "auto_batch": auto},
})
build = trainer.Trainer.__init__

def limited(self, *given, **how):
    build(self, *given, **how)
    # What a training takes beyond what its making took.
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + limit, resource.getrlimit(resource.RLIMIT_AS)[1]))

trainer.Trainer.__init__ = limited
try:
    print(*trainer.train(config, folder).notes, sep="\\n")
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell the memory of a process")
def test_memory_that_really_runs_out(tmp_path: Path) -> None:
    def run(auto: str, megabytes: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, str(megabytes << 20), auto, str(tmp_path / auto)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    failed = run("no", 400)
    assert failed.returncode == 1
    told = "AuguryError: training: step 1: the memory of this machine ran out with 1024 images"
    assert failed.stderr.startswith(told)
    assert "can't allocate memory" in failed.stderr
    found = run("auto", 400)
    assert found.returncode == 0, found.stderr
    told = "step 1: memory ran out with 1024 images at once; from the last checkpoint on 512 pass at once"
    assert told in found.stdout
    assert "BatchNorm's statistics are those of" in found.stdout
