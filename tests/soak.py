"""Short runs with random compositions and settings, each killed at random points and resumed, against a twin that
nobody disturbed: `make soak`.

Every run is a process forked from this warm one, so that a kill is a kill (SIGKILL: no handler, no `finally`), and a
hundred of them take minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.train.small_runs import assert_same_run

from augury.errors import UsageError
from augury_train import files
from augury_train.config import RunConfig, read_config
from augury_train.training import checkpoint
from augury_train.training.folder import CONFIG
from augury_train.training.plan import make_plan
from augury_train.training.trainer import resume, train

METHODS: dict[str, list[dict[str, Any]]] = {
    "resmooth": [{}, {"variant": "official"}, {"loss": "smooth"}, {"weighting": "uniform"}],
    "dcutmix": [{}, {"k": 3}, {"prob": 0.5}],
    "isda": [{}, {"lambda_0": 0.25}],
    "agmax": [{}, {"n_units": 16}],
}
"""What the compositions are drawn from, in an order in which all go together."""
SILENT = 600.0
"""Seconds without a new row, checkpoint or other file after which a run has hung."""
POLL = 0.002
"""Seconds between two looks at a run."""
HUNG = 1000
"""What stands for that among exit statuses."""


def drawn_config(drawn: random.Random) -> RunConfig:
    """Settings of a run of a few seconds at most."""
    while True:
        named = [(name, drawn.choice(options)) for name, options in METHODS.items() if drawn.random() < 0.45]
        values: dict[str, Any] = {
            "seed": drawn.randrange(1000),
            "device": "cpu",
            "data": {
                "images_per_class": drawn.choice([8, 10]),
                "augmented": drawn.choice(["crop:1", "crop:1 cutout:3", "randaugment crop:1"]),
                "loader": drawn.choice(["memory", "memory", "memory", "stream"]),
                "workers": drawn.choice([0, 0, 1, 2]),
                "protocol": drawn.choice(["validation", "paper"]),
            },
            # Dropout draws from torch's generator, which a resumed run must find where it was.
            "model": {"kwargs": {"drop_rate": drawn.choice([0.1, 0.3])}},
            "optim": {
                "name": drawn.choice(["sgd", "sgd", "adamw"]),
                "epochs": drawn.choice([2, 3, 4]),
                "batch_size": drawn.choice([16, 20]),
                "accumulation": drawn.choice([1, 1, 2]),
                "clip": drawn.choice([None, 1.0]),
                "lr": 0.01,
            },
            "schedule": {"name": drawn.choice(["cosine", "plateau", "multistep"]), "milestones": [1]},
            "train": {
                "trackers": drawn.choice([[], [], ["tensorboard"]]),
                "ema": drawn.choice([None, 0.9]),
                "save_every": drawn.choice([None, 1, 3]),
                "on_nan": drawn.choice(["stop", "skip"]),
            },
            "methods": [{"name": name, "options": options} for name, options in named],
        }
        config = read_config(values)
        try:
            make_plan(config)
        except UsageError:
            continue  # a method refuses an option or another one
        return config


@dataclass(frozen=True)
class Kill:
    """When a run dies: so many seconds after it began to train, or at its so many-th change of a file."""

    seconds: float | None = None
    replacement: int | None = None
    after: bool = False

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"at {self.seconds:.2f} s"
        return f"{'after' if self.after else 'before'} file {self.replacement}"


@dataclass(frozen=True)
class Outcome:
    """What became of one run: whether it ended as its twin did, and why not."""

    seed: int
    what: str
    kills: tuple[str, ...]
    reason: str = ""

    @property
    def survived(self) -> bool:
        return not self.reason


def in_fork(work: Callable[[], object], folder: Path, errors: Path, kill: Kill | None = None) -> int:
    """Do `work`, a run in `folder`, in a forked process, which dies as `kill` says; returns its exit status, negative
    for a signal."""
    errors.unlink(missing_ok=True)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if kill is not None and kill.replacement is not None:
                _die_at_replacement(kill)
            work()
            code = 0
        except BaseException:
            errors.write_text(traceback.format_exc(), encoding="utf-8")
        finally:
            os._exit(code)
    dies = None if kill is None or kill.seconds is None else time.monotonic() + kill.seconds
    found, silent = files_of(folder), 0.0
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        timed = dies is not None and time.monotonic() > dies
        if timed or silent > SILENT:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL if timed else HUNG
        time.sleep(POLL)
        # The waiting is counted, not read from a clock: a machine that is slow is slow for both.
        silent += POLL
        if silent > SILENT / 20 and (now := files_of(folder)) != found:
            found, silent = now, 0.0


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of change of each file of a run: what shows that it goes on."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a checkpoint that is replaced
            told = path.stat()
            found[str(path)] = told.st_size, told.st_mtime_ns
    return found


def _die_at_replacement(kill: Kill) -> None:
    replace, left = os.replace, kill.replacement or 1

    def dying(*arguments: Any, **how: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0 and not kill.after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments, **how)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    for module in (files, checkpoint):
        module.os.replace = dying  # type: ignore[attr-defined]


def soak_one(seed: int, folder: Path) -> Outcome:
    """A run and its twin, all decided by `seed` but the moments of kills by time."""
    drawn = random.Random(seed)
    config = drawn_config(drawn)
    what = " ".join(m.name for m in config.methods) or "no method"
    what += f", {config.data.loader}" + (f" of {config.data.workers}" if config.data.loader == "stream" else "")
    twin, run, errors = folder / "twin", folder / "run", folder / "errors.txt"
    began = time.monotonic()
    if status := in_fork(lambda: train(config, twin), twin, errors):
        return Outcome(seed, what, (), f"its twin, which nobody disturbed: {_reason(status, errors)}")
    seconds = time.monotonic() - began
    kills = []
    for _ in range(drawn.choice([1, 1, 2])):
        if drawn.random() < 0.5:
            kill = Kill(seconds=drawn.random() * seconds)
        else:
            kill = Kill(replacement=drawn.randint(1, 3 + 3 * config.optim.epochs), after=drawn.random() < 0.5)
        status = in_fork(lambda: _go_on(config, run), run, errors, kill)
        kills.append(str(kill) if status == -signal.SIGKILL else f"{kill} (it had ended)")
        if status not in (0, -signal.SIGKILL):
            return Outcome(seed, what, tuple(kills), _reason(status, errors))
    if status := in_fork(lambda: _go_on(config, run), run, errors):
        return Outcome(seed, what, tuple(kills), _reason(status, errors))
    try:
        assert_same_run(twin, run)
    except AssertionError as error:
        return Outcome(seed, what, tuple(kills), f"it differs from its twin: {' '.join(str(error).split())[:300]}")
    return Outcome(seed, what, tuple(kills))


def _go_on(config: RunConfig, folder: Path) -> None:
    """As a user would: resume what is a run, else begin anew."""
    if (folder / CONFIG).exists():
        resume(folder)
    else:
        train(config, folder)


def _reason(status: int, errors: Path) -> str:
    """How a run ended, and its last lines."""
    if status == HUNG:
        return f"it hung: no new row, checkpoint or other file for {SILENT:.0f} s"
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
    lines = errors.read_text(encoding="utf-8").strip().splitlines() if errors.exists() else []
    return "\n".join([f"it failed: {how}" + (":" if lines else ", without a word"), *lines[-8:]])


def soak(seeds: range, jobs: int, tell: Callable[[Outcome], None]) -> list[Outcome]:
    """All runs, `jobs` at once; `tell` hears of each as its turn comes."""
    # A forked process must not wait for threads that only its parent had.
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as kept:
        _warm_up(Path(kept))
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
            for outcome in pool.map(_one, seeds, [Path(kept)] * len(seeds)):
                tell(outcome)
                found.append(outcome)
    return found


def _one(seed: int, kept: Path) -> Outcome:
    folder = kept / str(seed)
    folder.mkdir()
    outcome = soak_one(seed, folder)
    shutil.rmtree(folder)
    return outcome


def _warm_up(folder: Path) -> None:
    """Import here what a run imports, so that forked ones need not."""
    from augury_lab.experiment.worker import warm_up

    warm_up()
    values = {"data": {"images_per_class": 8}, "optim": {"epochs": 1, "batch_size": 20}, "train": {"trackers": []}}
    train(read_config({"device": "cpu", **values}), folder / "warm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    began = time.monotonic()

    def tell(outcome: Outcome) -> None:
        end = "survived" if outcome.survived else f"LOST: {outcome.reason}"
        print(f"{outcome.seed:4}  {outcome.what:45}  killed {' and '.join(outcome.kills):40}  {end}", flush=True)

    found = soak(range(asked.first, asked.first + asked.runs), asked.jobs, tell)
    survived = sum(outcome.survived for outcome in found)
    print(f"survived {survived}/{len(found)} in {time.monotonic() - began:.0f} s")
    return 0 if survived == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
