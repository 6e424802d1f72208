"""Suites carried out: every run once, the same start for each seed, alone or several at once, interrupted or not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.train.small_runs import StopsAfter, rows_of, small

import augury
from augury.errors import AuguryError, UsageError
from augury.registry import Register
from augury_lab.experiment.jobs import in_processes
from augury_lab.experiment.runner import finish, run_suite
from augury_lab.experiment.suite import Composition, Suite, folder_of, make_suite, parse_compositions
from augury_lab.experiment.table import Comparison
from augury_lab.experiment.worker import Task
from augury_train.training.plan import make_plan
from augury_train.training.result import Result, read_result
from augury_train.training.trainer import Trainer, train
from augury_train.training.watch import Interrupted, Reporter, Silent

SHORT: dict[str, Any] = {"optim": {"epochs": 1}}


def suite_of(*texts: str, seeds: int = 2, **how: Any) -> Suite:
    return make_suite(small(**SHORT), parse_compositions(texts), seeds=seeds, **how)


def table_of(comparison: Comparison) -> list[Any]:
    """All that does not depend on the clock or the machine."""
    timed = {"seconds", "stage_seconds", "images_per_second", "peak_bytes"}
    return [
        {key: value for key, value in dataclasses.asdict(row).items() if key not in timed} for row in comparison.rows
    ]


def test_runs_of_a_seed_start_alike_and_those_of_two_seeds_do_not() -> None:
    suite = suite_of("isda", "dcutmix+agmax")
    started = {
        (name, seed): Trainer(make_plan(suite.run_config(name, seed))).network.state_dict()
        for name in suite.compositions
        for seed in suite.all_seeds
    }
    first = started["baseline", 3]
    for (_, seed), weights in started.items():
        same = all(torch.equal(first[key], weights[key]) for key in first)
        assert same == (seed == 3)
    plans = [make_plan(suite.run_config(name, seed)) for name, seed in started]
    for plan in plans:
        assert torch.equal(plan.data.splits.train.rows, plans[0].data.splits.train.rows)


def test_finished_runs_are_not_repeated_and_more_can_be_asked_for(tmp_path: Path) -> None:
    first = run_suite(suite_of("isda", seeds=1), tmp_path / "suite")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "suite").rglob("result.json")}
    assert len(stamps) == 2
    more = run_suite(suite_of("isda", "dcutmix"), tmp_path / "suite")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert [row.composition for row in more.rows] == ["baseline", "isda", "dcutmix"]
    assert more.rows[0].seeds == [3, 4]
    assert [r.best for r in more.runs["isda"][:1]] == [r.best for r in first.runs["isda"]]
    assert json.loads((tmp_path / "suite" / "suite.json").read_text())["seeds"] == [3, 4]


@pytest.mark.slow
def test_a_suite_interrupted_twice_gives_the_table_of_one_that_never_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of("resmooth", "isda")
    whole = run_suite(suite, tmp_path / "whole")

    for steps in (3, 6):
        reporter = StopsAfter(steps)
        begin = Trainer.__init__

        def noting(self: Trainer, *args: Any, begin: Any = begin, stops: Any = reporter, **how: Any) -> None:
            begin(self, *args, **how)
            stops.trainer = self

        with monkeypatch.context() as patch:
            # The reporter asks whatever trainer is at work, as Ctrl-C does.
            patch.setattr(Trainer, "__init__", noting)
            with pytest.raises(Interrupted, match="Go on with the same command"):
                run_suite(suite, tmp_path / "stopped", reporter=reporter)
    found = run_suite(suite, tmp_path / "stopped")
    assert table_of(found) == table_of(whole)
    for name in suite.compositions:
        for seed in suite.all_seeds:
            assert rows_of(folder_of(tmp_path / "stopped", name, seed)) == rows_of(
                folder_of(tmp_path / "whole", name, seed)
            )


@pytest.mark.slow
def test_several_at_once_give_what_one_after_the_other_gives(tmp_path: Path) -> None:
    suite = suite_of("resmooth", "resmooth+isda", seeds=1)
    one = run_suite(suite, tmp_path / "one")

    class Heard(Silent):
        def __init__(self) -> None:
            self.lines: list[tuple[str, ...]] = []
            self.steps = 0

        def named(self, name: str) -> Reporter:
            heard = self

            class Named(Silent):
                def start(self, what: str, total_steps: int, done: int) -> None:
                    heard.lines.append((name, what))

                def step(self, images: int) -> None:
                    heard.steps += 1

            return Named()

    heard = Heard()
    two = run_suite(suite, tmp_path / "two", jobs=2, reporter=heard)
    told = [what for what in heard.lines if "pre-train stage" in what[1]]
    assert len(told) == 1, "the stage is made once, the other run waits for it"
    assert len({name for name, _ in heard.lines}) == 3
    # Processes of this test have the threads of a machine with two jobs.
    for mine, theirs in zip(table_of(one), table_of(two), strict=True):
        assert theirs["forward_passes"] == mine["forward_passes"]
        assert theirs["best_top1"]["mean"] == pytest.approx(mine["best_top1"]["mean"], abs=1)


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    config = small(optim={"epochs": 1, "lr": 1e9}, schedule={"name": "constant"})
    suite = make_suite(config, parse_compositions(["isda"]), seeds=1)
    with pytest.raises(AuguryError, match="^baseline, seed 3: training: the (loss|gradient) is no longer finite"):
        run_suite(suite, tmp_path / "suite")


def killed(task: Task, register: Register | None, reporter: Reporter) -> Result:
    """Ends its process as the system does that has no memory left."""
    os._exit(9)


def interrupting(task: Task, register: Register | None, reporter: Reporter) -> Result:
    """Carries out a task, and the first process to make a step interrupts the program that started it, once."""
    parent = os.getppid()

    class Interrupts(Silent):
        def step(self, images: int) -> None:
            with contextlib.suppress(FileExistsError):
                (task.folder.parents[1] / "interrupted").touch(exist_ok=False)
                os.kill(parent, signal.SIGINT)

    return finish(task, register, Interrupts())


def tasks_of(suite: Suite, folder: Path) -> list[Task]:
    return [
        Task(f"1/2 {name}, seed {seed}", suite.run_config(name, seed), folder_of(folder, name, seed))
        for name in suite.compositions
        for seed in suite.all_seeds
    ]


@pytest.mark.slow
def test_a_process_that_is_killed_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(AuguryError, match="killed for want of memory perhaps, at one of: baseline, seed 3"):
        in_processes(tasks_of(suite_of(seeds=1), tmp_path), killed, 1, [], None, Silent())


@pytest.mark.slow
def test_ctrl_c_lets_every_process_write_its_checkpoint(tmp_path: Path) -> None:
    suite = make_suite(small(optim={"epochs": 500}), parse_compositions(["isda"]), seeds=1)
    tasks = tasks_of(suite, tmp_path)
    with pytest.raises(Interrupted):
        in_processes(tasks, interrupting, 2, [], None, Silent())
    left = [task for task in tasks if list(task.folder.glob("checkpoints/*.pt"))]
    assert left, "at least the one that made a step"
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("*.partial"))


def test_ctrl_c_in_a_runs_last_evaluation_ends_the_suite_after_that_run(tmp_path: Path) -> None:
    class AtTheEnd(Silent):
        def epoch(self, row: dict[str, Any]) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    suite = suite_of("isda", seeds=1)
    with pytest.raises(Interrupted, match="Go on with the same command"):
        run_suite(suite, tmp_path / "suite", reporter=AtTheEnd())
    assert read_result(folder_of(tmp_path / "suite", "baseline", 3)).epochs == 1
    assert not folder_of(tmp_path / "suite", "isda", 3).exists()
    run_suite(suite, tmp_path / "suite")


def test_a_composition_with_another_network_gets_the_images_as_that_one_wants_them(tmp_path: Path) -> None:
    for number in range(20):
        for name in ("cat", "dog"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (12 * number, 100, 10)).save(tmp_path / "data" / name / f"{number}.png")
    config = small(
        data={"dataset": str(tmp_path / "data"), "images_per_class": None, "augmented": "flip"},
        optim={"epochs": 1, "batch_size": 4},
    )
    other = Composition(settings={"model": {"name": "test_resnet"}})
    run_suite(make_suite(config, {"other": other}, seeds=1), tmp_path / "suite")
    alone = config.model_copy(update={"model": config.model.model_copy(update={"name": "test_resnet"})})
    train(alone, tmp_path / "alone")
    found = folder_of(tmp_path / "suite", "other", 3)
    facts = [json.loads((place / "data.json").read_text())["image_size"] for place in (found, tmp_path / "alone")]
    assert facts == [160, 160]
    assert rows_of(found) == rows_of(tmp_path / "alone")


def test_equal_compute_needs_runs_that_go_to_their_end(tmp_path: Path) -> None:
    suite = make_suite(small(train={"patience": 1}), {}, seeds=1, equal="compute")
    with pytest.raises(UsageError, match="train.patience=1 ends runs early"):
        run_suite(suite, tmp_path / "suite")


def test_two_programs_do_not_carry_out_one_suite_at_once(tmp_path: Path) -> None:
    going, enough = threading.Event(), threading.Event()

    class Slow(Silent):
        def step(self, images: int) -> None:
            going.set()
            enough.wait(60)

    thread = threading.Thread(target=lambda: run_suite(suite_of(seeds=1), tmp_path / "suite", reporter=Slow()))
    thread.start()
    try:
        assert going.wait(60)
        with pytest.raises(UsageError, match="another `augury compare` is at work there"):
            run_suite(suite_of(seeds=1), tmp_path / "suite")
    finally:
        enough.set()
        thread.join()
    assert read_result(folder_of(tmp_path / "suite", "baseline", 3)).epochs == 1


def test_a_folder_with_other_runs_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    run_suite(suite_of(seeds=1), tmp_path / "suite")
    other = make_suite(small(optim={"epochs": 1, "lr": 0.01}), parse_compositions(["isda"]), seeds=1)
    with pytest.raises(UsageError, match="baseline/seed-3 holds a run with other settings: optim.lr is 0.05, now 0.01"):
        run_suite(other, tmp_path / "suite")
    assert not folder_of(tmp_path / "suite", "isda", 3).exists()


def test_runs_on_other_images_are_refused_by_name(tmp_path: Path) -> None:
    for number in range(20):
        for name in ("cat", "dog"):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 100, 10)).save(tmp_path / "data" / name / f"{number}.png")
    config = small(
        data={"dataset": str(tmp_path / "data"), "image_size": 8, "images_per_class": None},
        optim={"epochs": 1, "batch_size": 4},
    )
    suite = make_suite(config, {}, seeds=1)
    run_suite(suite, tmp_path / "suite")
    (tmp_path / "data" / "cat" / "3.png").unlink()
    with pytest.raises(UsageError, match="baseline/seed-3: the images are not those that the run began with"):
        run_suite(suite, tmp_path / "suite")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and holds no comparison"):
        run_suite(suite_of(seeds=1), tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter-1.txt"]


def test_what_a_kill_before_the_first_step_leaves_is_no_obstacle(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "suite", "baseline", 3)
    place.mkdir(parents=True)
    (tmp_path / "suite" / "suite.json").write_text("{}")
    (place / "data.json").write_text("{")
    (place / "config.json.partial").write_text("{")
    (place / "subset.json").write_text("{")
    run_suite(suite_of(seeds=1), tmp_path / "suite")
    assert read_result(place).epochs == 1
    shutil.rmtree(place)
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        run_suite(suite_of(seeds=1), tmp_path / "suite")
    assert (place / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_equal_compute_gives_everyone_the_bases_forward_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("rehearsed or trained again")

    config = small(optim={"epochs": 6}, schedule={"warmup_epochs": 2})
    suite = make_suite(config, parse_compositions(["agmax", "resmooth"]), seeds=1, equal="compute")
    comparison = run_suite(suite, tmp_path / "suite")
    base, agmax, resmooth = comparison.rows
    budget = 6 * 4 * 25
    assert (base.epochs, base.forward_passes) == (6, budget)
    assert (agmax.epochs, agmax.forward_passes) == (3, budget), "two views of each image"
    # A stage of as many epochs, 200 images measured, and a frozen network that sees 0.8 of each batch.
    per_epoch = 4 * (25 + 25 + round(25 * 0.8))
    assert resmooth.epochs == (budget - 200) // per_epoch
    assert resmooth.forward_passes == resmooth.epochs * per_epoch + 200
    assert budget - per_epoch < resmooth.forward_passes <= budget
    # The second time nothing is rehearsed or repeated, and the epochs are the same.
    for name in ("augury_lab.experiment.budget.passes_on_noise", "augury_train.training.loop.Loop.run"):
        monkeypatch.setattr(name, never)
    assert table_of(run_suite(suite, tmp_path / "suite")) == table_of(comparison)


def test_a_budget_without_room_for_one_epoch_is_refused(tmp_path: Path) -> None:
    suite = make_suite(small(optim={"epochs": 1}), parse_compositions(["agmax"]), seeds=1, equal="compute")
    with pytest.raises(
        UsageError,
        match="composition agmax: one epoch takes 200 forward passes, and the base's 100 .* optim.epochs to 2 or more",
    ):
        run_suite(suite, tmp_path / "suite")


# In Python.


@pytest.mark.slow
def test_compare_in_python_is_typed_and_quiet_when_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = {"data.images_per_class": 10, "optim.batch_size": 25, "optim.epochs": 1, "train": {"trackers": []}}
    found = augury.compare(
        {"isda": ["isda"], "both": ["dcutmix", ("isda", {"lambda_0": 0.1})], "text": "dcutmix:k=2"},
        settings=settings,
        dataset="digits",
        seeds=1,
        folder=tmp_path / "suite",
        progress=False,
    )
    assert isinstance(found, Comparison)
    assert [row.composition for row in found.rows] == ["baseline", "isda", "both", "text"]
    assert found.rows[0].difference is None
    assert found.rows[1].difference is not None
    assert capfd.readouterr() == ("", "")
    augury.compare(["isda"], settings={**settings, "seed": 1}, seeds=1, folder=tmp_path / "two")
    out, err = capfd.readouterr()
    assert out == ""
    assert "isda, seed 1" in err


def test_compare_in_python_refuses_what_it_cannot_take(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Write \['isda'\]"):
        augury.compare("isda")
    with pytest.raises(UsageError, match="seeds and jobs must be at least 1"):
        augury.compare(["isda"], seeds=0)
    with pytest.raises(UsageError, match="unknown key `lrr`"):
        augury.compare(["isda"], settings={"optim.lrr": 1}, folder=tmp_path)
    with pytest.raises(UsageError, match="equal must be one of epochs, compute, got 'time'"):
        augury.compare(["isda"], equal="time", folder=tmp_path)  # type: ignore[arg-type]
    for wrong in ({"x": 3}, {"x": [3]}, [("isda",)], {"x": [("isda", {}, 3)]}):
        with pytest.raises(UsageError, match="must be"):
            augury.compare(wrong, folder=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"Write \['cuda:0', 'cuda:1'\]"):
        augury.compare(["isda"], devices="cuda:0,cuda:1", folder=tmp_path)
    with pytest.raises(UsageError, match="`cuda:99` must be one of this machine's GPUs"):
        augury.compare(["isda"], devices=["cuda:99"], folder=tmp_path)
