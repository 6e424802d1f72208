"""What pre-train stages make: kept in the run's folder, gone on with after an interruption, shared where it is the
same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import StopsAfter, assert_same_run, interrupted, small
from torch import Tensor
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury.choice import Chosen, check, choose
from augury.distributed import Ranks
from augury.errors import UsageError
from augury_train.training.kept import Kept
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, resume, train

FACTS = {"settings": {"seed": 1, "optim": {"lr": 0.1}}}
STAGE_STEPS = 8
"""Of the two epochs in `small`."""


class Making:
    """Makes a tensor that tells how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Mapping[str, Tensor]:
        self.times += 1
        return {"x": torch.full((3,), float(self.times)), "count": torch.tensor([self.times])}


def kept_in(folder: Path | None, *others: Path, facts: Any = FACTS) -> Kept:
    return Kept(facts, Ranks(), folder, others)


def test_what_is_kept_is_made_once(tmp_path: Path) -> None:
    make = Making()
    first = kept_in(tmp_path).recall_or("m/thing", make, {"k": 3})
    again = kept_in(tmp_path).recall_or("m/thing", make, {"k": 3})
    assert make.times == 1
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [path.name for path in (tmp_path / "stages" / "m").iterdir()] == ["thing.safetensors"]


@pytest.mark.parametrize(
    ("key", "given", "facts"),
    [
        ("m/other", {"k": 3}, FACTS),
        ("m/thing", {"k": 4}, FACTS),
        ("m/thing", {}, FACTS),
        ("m/thing", {"k": 3}, {"settings": {"seed": 2, "optim": {"lr": 0.1}}}),
    ],
)
def test_what_is_decided_otherwise_is_made_anew(tmp_path: Path, key: str, given: Any, facts: Any) -> None:
    make = Making()
    kept_in(tmp_path).recall_or("m/thing", make, {"k": 3})
    kept_in(tmp_path, facts=facts).recall_or(key, make, given)
    assert make.times == 2
    # The last one is what is kept.
    kept_in(tmp_path, facts=facts).recall_or(key, make, given)
    assert make.times == 2


@pytest.mark.parametrize("content", [b"", b"not tensors", None])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    make, path = Making(), tmp_path / "stages" / "m" / "thing.safetensors"
    kept_in(tmp_path).recall_or("m/thing", make, {})
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    assert kept_in(tmp_path).recall_or("m/thing", make, {})["x"].tolist() == [2, 2, 2]
    assert make.times == 2


def test_other_runs_lend_what_is_the_same_and_every_run_has_its_own_file(tmp_path: Path) -> None:
    make, one, two = Making(), tmp_path / "one", tmp_path / "two"
    for run in (one, two):
        run.mkdir()
    kept_in(one).recall_or("m/thing", make, {})
    assert kept_in(two, tmp_path / "none", one).recall_or("m/thing", make, {})["x"].tolist() == [1, 1, 1]
    (one / "stages" / "m" / "thing.safetensors").unlink()
    kept_in(two).recall_or("m/thing", make, {})
    assert make.times == 1


def test_nothing_is_kept_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make = Making()
    for _ in range(2):
        kept_in(None).recall_or("m/thing", make, {})
    assert make.times == 2
    assert list(tmp_path.iterdir()) == []


def test_progress_of_other_facts_is_not_gone_on_with(tmp_path: Path) -> None:
    kept_in(tmp_path).save_progress("m/thing", {"k": 3}, 7, {"x": torch.ones(2)})
    found = kept_in(tmp_path).progress("m/thing", {"k": 3})
    assert found is not None
    assert found["x"].tolist() == [1, 1]
    assert kept_in(tmp_path).progress("m/thing", {"k": 4}) is None
    assert kept_in(tmp_path, facts={"settings": {"seed": 9}}).progress("m/thing", {"k": 3}) is None
    kept_in(tmp_path).recall_or("m/thing", Making(), {"k": 3})
    assert kept_in(tmp_path).progress("m/thing", {"k": 3}) is None, "it is done"


def make_or_find(rank: int, folder: Path, made: bool) -> None:
    """Both processes find it, or both make it; the first one writes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    make = Making()
    # One process cannot see what is there, as on a machine of its own.
    own = folder / ("run" if made or rank == 0 else "elsewhere")
    Kept(FACTS, Ranks(), own).recall_or("m/thing", make, {})
    (folder / f"asked-{rank}").write_text(str(make.times))
    dist.destroy_process_group()


@pytest.mark.parametrize("everywhere", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.slow
def test_processes_make_it_together_or_not_at_all(everywhere: bool, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    kept_in(tmp_path / "run").recall_or("m/thing", Making(), {})
    mp.spawn(make_or_find, args=(tmp_path, everywhere), nprocs=2)
    assert [(tmp_path / f"asked-{rank}").read_text() for rank in range(2)] == ["0" if everywhere else "1"] * 2


# In runs.


class Steps(StopsAfter):
    """Counts the steps of stages and of the training, and may ask to stop."""

    def __init__(self, stop_after: int = 0) -> None:
        super().__init__(stop_after)
        self.by_what: dict[str, int] = {}
        self._name = self._what = ""

    def named(self, name: str) -> Steps:
        self._name = name
        return self

    def start(self, what: str, total_steps: int, done: int) -> None:
        self._what = f"{self._name} {what}".strip()

    def step(self, images: int) -> None:
        self.by_what[self._what] = self.by_what.get(self._what, 0) + 1
        super().step(images)


STAGE = "resmooth: pre-train stage"


@pytest.mark.parametrize("stopped_after", [3, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (4, 7))])
def test_a_stage_that_was_interrupted_halfway_goes_on(tmp_path: Path, stopped_after: int) -> None:
    config = small("resmooth", model={"name": "resnet20_cifar", "kwargs": {"drop_rate": 0.2}}, train={"ema": 0.5})
    interrupted(config, tmp_path / "resumed", stopped_after)
    assert not list((tmp_path / "resumed").glob("checkpoints/*.pt")), "the training itself has not begun"
    steps = Steps()
    costs = resume(tmp_path / "resumed", reporter=steps).costs
    assert steps.by_what == {STAGE: STAGE_STEPS - stopped_after, "training": STAGE_STEPS}
    whole = train(config, tmp_path / "run").costs
    assert_same_run(tmp_path / "run", tmp_path / "resumed")
    assert (costs.forward_passes, costs.stage_passes) == (whole.forward_passes, whole.stage_passes)
    assert not (tmp_path / "resumed" / "stages" / "resmooth" / "network-base").exists(), "its checkpoints are done with"


def test_a_run_killed_after_its_stage_does_not_repeat_it(tmp_path: Path) -> None:
    config = small("resmooth")
    interrupted(config, tmp_path / "run", STAGE_STEPS + 2)
    steps = Steps()
    costs = resume(tmp_path / "run", reporter=steps).costs
    assert steps.by_what == {"training": STAGE_STEPS - 2}
    # 8 steps of 25 images; of each batch the share that is augmented passes the frozen network too.
    rows = STAGE_STEPS * 25
    assert costs.stage_passes == rows + 2 * 100, "the stage's training, and every image as both pipelines make it"
    assert costs.forward_passes == costs.stage_passes + rows + STAGE_STEPS * round(25 * 0.8)


class Both(augury.Method):
    """Trains a network on each pipeline."""

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        for pipeline in ("base", "augmented"):
            network = run.train_network(pipeline)
            self.register_buffer(pipeline, network.fc.weight.detach().clone())


def test_networks_of_both_pipelines_are_kept_apart(tmp_path: Path) -> None:
    found = []
    for _ in range(2):
        plan = make_plan(small())
        plan.chosen.append(Chosen("both", Both, Both.Options()))
        steps = Steps()
        trainer = Trainer(plan, reporter=steps, others=[tmp_path / "0"])
        trainer.run(tmp_path / str(len(found)))
        both = trainer.methods["both"]
        found.append((both.base, both.augmented, steps.by_what.get("both: pre-train stage", 0)))
    (base, augmented, trained), again = found
    assert (trained, again[2]) == (2 * STAGE_STEPS, 0)
    assert torch.equal(base, again[0])
    assert torch.equal(augmented, again[1])
    assert not torch.equal(base, augmented)


@pytest.mark.slow
def test_a_stage_of_other_settings_is_not_shared(tmp_path: Path) -> None:
    train(small("resmooth"), tmp_path / "one")
    for sections in ({"optim": {"lr": 0.04}}, {"data": {"augmented": "crop:1 cutout:2"}}):
        steps = Steps()
        plan = make_plan(small("resmooth", **sections))
        Trainer(plan, reporter=steps, others=[tmp_path / "one"]).run(tmp_path / next(iter(sections)))
        assert STAGE in steps.by_what


# What a method refuses of a run.


class Picky(augury.Method):
    """Refuses images of 8 pixels."""

    @classmethod
    def check(cls, options: Any, spec: augury.Spec) -> None:
        if spec.image_size is not None and spec.image_size[1] == 8:
            raise UsageError(
                "picky: wants larger images.\npicky: and other classes than " + ", ".join(spec.classes or ())
            )

    @augury.hookimpl
    def post_epoch(self) -> None:
        return None


def test_a_method_refuses_a_run_before_it_is_built_and_never_when_it_is_resumed() -> None:
    chosen, problems = choose([Picky])
    assert problems == []
    spec = augury.Spec(num_classes=2, image_size=(1, 8, 8), classes=("cat", "dog"))
    assert check(chosen, spec, None) == ["picky: wants larger images.", "picky: and other classes than cat, dog"]
    assert check(chosen, spec, None, fresh=False) == []
    assert check(chosen, dataclasses.replace(spec, image_size=(1, 9, 9)), None) == []
