"""Checkpoints: whole or passed over, never executed, the last two kept; and what a run makes of damaged ones."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.train.small_runs import DROPOUT, assert_same_run, interrupted, small

from augury.errors import AuguryError, UsageError
from augury_train.backbones.weights import load_weights, save_weights
from augury_train.config import RunConfig
from augury_train.training import checkpoint
from augury_train.training.checkpoint import (
    checkpoints,
    load_checkpoint,
    save_checkpoint,
    weights_epoch,
)
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, resume, train


def saved(folder: Path, *steps: int) -> list[Path]:
    """Checkpoints of those steps, each holding its number."""
    for step in steps:
        save_checkpoint(folder, step, {"step": step, "tensor": torch.full((1000,), float(step))})
    return checkpoints(folder)


def test_the_last_two_steps_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    names = [path.name for path in saved(tmp_path, 1, 2, 30)]
    assert [name[:15] for name in names] == ["step-000000002-", "step-000000030-"]
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 30
    assert torch.equal(state["tensor"], torch.full((1000,), 30.0))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == names, "nothing else is left behind"


def test_of_one_step_only_the_latest_is_kept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    save_checkpoint(tmp_path, 2, {"step": 2, "looked at": True})
    assert len(checkpoints(tmp_path)) == 2
    assert load_checkpoint(tmp_path) == {"step": 2, "looked at": True}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another(path: Path) -> None:
    torch.save({"step": 99}, path)


@pytest.mark.parametrize("damage", [cut, flip_a_bit, empty, another])
def test_a_damaged_newest_one_is_passed_over_and_that_is_said(damage: Any, tmp_path: Path) -> None:
    _, newest = saved(tmp_path, 1, 2)
    damage(newest)
    told: list[str] = []
    state = load_checkpoint(tmp_path, told.append)
    assert state is not None
    assert state["step"] == 1
    (line,) = told
    assert str(newest) in line
    assert "damaged" in line
    assert "The one before is used" in line


def test_where_all_are_damaged_the_run_is_not_begun_anew_in_silence(tmp_path: Path) -> None:
    for path in saved(tmp_path, 1, 2):
        flip_a_bit(path)
    told: list[str] = []
    with pytest.raises(UsageError, match="no checkpoint can be read. Start the run anew") as refused:
        load_checkpoint(tmp_path, told.append)
    assert not told, "none before is used"
    assert len(str(refused.value).splitlines()) == 3


def test_what_is_later_or_left_over_goes_with_the_next_one(tmp_path: Path) -> None:
    # The damaged one of step 12 was passed over, and the run went on from step 8.
    saved(tmp_path, 8, 12)
    for name in ("step-000000012.pt", "step-000000005.pt.partial"):
        (tmp_path / "checkpoints" / name).write_bytes(b"cut short")
    saved(tmp_path, 9)
    assert [checkpoint._step(path) for path in checkpoints(tmp_path)] == [8, 9]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


class Payload:
    """What a checkpoint from a stranger may hold."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["of torch", "bare", "cut short"])
def test_a_checkpoint_executes_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-000000001.pt"
    path.parent.mkdir()
    payload = {"step": Payload(tmp_path / "ran")}
    if kind == "of torch":
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload) if kind == "bare" else b"\x80\x02}q\x00(X")
    path.rename(path.with_name(f"step-000000001-{checkpoint._digest(path)}.pt"))
    with pytest.raises(UsageError, match="damaged"):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_killed_before_it_has_its_name_a_checkpoint_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1)

    def dies(*_: Any) -> None:
        raise SystemExit

    monkeypatch.setattr(checkpoint.os, "replace", dies)
    with pytest.raises(SystemExit):
        save_checkpoint(tmp_path, 2, {"step": 2})
    monkeypatch.undo()
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1


@pytest.mark.parametrize("state", [np.float64(1), np.arange(3), Path("x"), Payload(Path("x"))])
def test_what_could_not_be_read_back_is_refused_when_it_is_written(state: Any, tmp_path: Path) -> None:
    content = {"loop": {"methods": {"methods.odd._extra_state": [0, state]}}}
    with pytest.raises(AuguryError, match=r"methods\.odd\._extra_state\[1\]`, a .* cannot be read back"):
        save_checkpoint(tmp_path, 1, content)
    assert not checkpoints(tmp_path)


def test_what_can_be_read_back_is_written(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"seen": {1, 2}, "order": OrderedDict(a=1)})
    assert load_checkpoint(tmp_path) == {"seen": {1, 2}, "order": {"a": 1}}


def test_weights_that_are_not_what_was_written_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    weights = {"a": torch.randn(3, 4), "b": torch.tensor(2), "c": torch.zeros(0), "d": torch.ones(2).bfloat16()}
    save_weights(path, weights, {"epoch": "7"})
    found, said = load_weights(path)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert said == {"epoch": "7"}
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert weights_epoch(path) is None
    with pytest.raises(ValueError, match="not what was written"):
        load_weights(path)


# In a run.


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of four steps, undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(small("isda", model=DROPOUT, optim={"epochs": 3}), folder)
    return folder


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(small("isda", model=DROPOUT, optim={"epochs": 3}), folder, 9)
    before, newest = checkpoints(folder)
    assert (checkpoint._step(before), checkpoint._step(newest)) == (8, 9)
    flip_a_bit(newest)
    result = resume(folder)
    assert any("damaged" in note for note in result.notes)
    assert_same_run(whole, folder)


def test_checkpoints_come_every_so_many_steps(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    save = checkpoint.save_checkpoint

    def noting(folder: Path, step: int, state: dict[str, Any]) -> None:
        steps.append(step)
        save(folder, step, state)

    monkeypatch.setattr("augury_train.training.trainer.save_checkpoint", noting)
    train(small("isda", model=DROPOUT, optim={"epochs": 3}, train={"save_every": 3}), tmp_path / "run")
    #              the start, each third step, and each epoch of four; the last is written again when it is looked at
    assert steps == [0, 3, 4, 6, 8, 9, 12, 12]
    assert_same_run(whole, tmp_path / "run")


def with_accuracies(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> None:
    """Let the n-th epoch of any trainer be as accurate as the n-th number."""
    monkeypatch.setattr(
        Trainer,
        "_evaluate",
        lambda self, split, network: {"top1": accuracies[self.loop.position.epoch - 1], "loss": 1.0},
    )


def dying_at_the_best(config: RunConfig, folder: Path, epoch: int) -> None:
    """A run that dies when it is to write the best weights after `epoch`."""

    class Killed(BaseException):
        pass

    trainer = Trainer(make_plan(config))
    weights = trainer._save_weights

    def dies(which: str) -> None:
        if trainer.loop.position.epoch == epoch:
            raise Killed
        weights(which)

    trainer._save_weights = dies  # type: ignore[method-assign]
    with pytest.raises(Killed):
        trainer.run(folder)


@pytest.mark.parametrize("every", [pytest.param(None, marks=pytest.mark.slow), 1])
def test_killed_between_the_checkpoint_and_the_best_weights(
    every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accuracies(monkeypatch, 10, 50, 20)
    config = small(optim={"epochs": 3}, train={"save_every": every})
    train(config, tmp_path / "whole")
    dying_at_the_best(config, tmp_path / "run", 2)
    assert weights_epoch(tmp_path / "run" / "best.safetensors") == 1
    result = resume(tmp_path / "run")
    assert result.best_epoch == 2
    assert not [note for note in result.notes if "best" in note and "lost" in note]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("when", ["before it goes on", "while it trains"])
def test_best_weights_that_are_lost_are_not_replaced_in_silence(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_accuracies(monkeypatch, 10, 50, 20, 30)
    folder, config = tmp_path / "run", small(optim={"epochs": 4})
    best = folder / "best.safetensors"
    if when == "before it goes on":
        interrupted(config, folder, 10)
        flip_a_bit(best)
        result = resume(folder)
    else:
        trainer = Trainer(make_plan(config))
        end = trainer._end_epoch

        def removing(row: dict[str, Any]) -> float:
            if row["epoch"] == 3:
                best.unlink()
            return end(row)

        monkeypatch.setattr(trainer, "_end_epoch", removing)
        result = trainer.run(folder)
    assert any("best.safetensors: gone, damaged" in note for note in result.notes)
    assert result.best_epoch == weights_epoch(best) == 4


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    interrupted(small(optim={"epochs": 3}), one, 2)
    interrupted(small(optim={"epochs": 3}, model={"name": "resnet32_cifar"}), other, 2)
    shutil.rmtree(one / "checkpoints")
    shutil.copytree(other / "checkpoints", one / "checkpoints")
    with pytest.raises(AuguryError, match="none of this run's settings.*Start the run anew"):
        resume(one)


# Stopped where no step is at work.


def test_a_stop_while_an_epoch_is_looked_at_keeps_its_steps(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    trainer = Trainer(make_plan(small("isda", model=DROPOUT, optim={"epochs": 3})))
    evaluate = trainer._evaluate

    def asked(split: str, network: torch.nn.Module) -> dict[str, float]:
        trainer.stop.asked = trainer.loop.position.epoch == 2
        return evaluate(split, network)

    monkeypatch.setattr(trainer, "_evaluate", asked)
    with pytest.raises(AuguryError, match="augury resume"):
        trainer.run(folder)
    state = load_checkpoint(folder)
    assert state is not None
    assert (state["loop"]["epoch"], state["loop"]["step"]) == (1, 4), "all steps of the second epoch are done"
    resume(folder)
    assert_same_run(whole, folder)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    interrupted(small(optim={"epochs": 3}), folder, 2)
    code = "import sys, pathlib; from augury_train.training.lock import lock\n"
    code += f"with lock(pathlib.Path({str(folder)!r}), 'busy'): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    before = sorted(folder.iterdir())
    with pytest.raises(UsageError, match="another process is training in it. Wait"):
        resume(folder)
    assert sorted(folder.iterdir()) == before
    # However it ends, the lock ends with it.
    other.kill()
    other.communicate()
    assert resume(folder).epochs == 3
