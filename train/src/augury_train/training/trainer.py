"""A whole run: from settings to a folder with a trained network."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from augury.errors import AuguryError, UsageError
from augury.method import hook_implementations
from augury.outside import given_path
from augury.randomness import derive
from augury.registry import Register
from augury_train.backbones.weights import load_weights, save_weights
from augury_train.config import RunConfig, load_config, save_config
from augury_train.data.subset import keep_subset, own_subset
from augury_train.data.view import DataSet
from augury_train.files import WriteError, refuse_ways_out
from augury_train.measures import Measures, gather_logits, logits_of, measure, top1_and_loss
from augury_train.open_files import too_many_open_files
from augury_train.training.built import Built
from augury_train.training.checkpoint import FOLDER as CHECKPOINTS
from augury_train.training.checkpoint import checkpoints, save_checkpoint, weights_epoch
from augury_train.training.costs import Spent, forget_peak, peak_bytes
from augury_train.training.environment import (
    ENVIRONMENT,
    environment,
    how_to_resume,
    read_environment,
    refuse_lost_classes,
    version_changes,
)
from augury_train.training.facts import DATA, begun, check_same_data, data_facts, weights_metadata
from augury_train.training.failing import with_a_way_on
from augury_train.training.finite import NotFinite
from augury_train.training.folder import CONFIG, hold, make, refuse_existing, refuse_lost, write_json
from augury_train.training.plan import Plan, lasting, make_plan, refuse_inside_data
from augury_train.training.processes import by_the_first, join, losing_peers_told, one_before_the_others
from augury_train.training.recorder import METRICS, Recorder, read_rows
from augury_train.training.result import RESULT, Costs, Result, read_result, write_result
from augury_train.training.shortage import within_memory
from augury_train.training.start_lines import introduce
from augury_train.training.state import load_state
from augury_train.training.watch import Interrupted, Reporter

BEST = "best.safetensors"
T = TypeVar("T")


class Trainer(Built):
    """One run, carried out in a folder.

    Attributes:
        halved: a line for each time that memory ran out and fewer images passed at once from there on.
    """

    halved: tuple[str, ...] = ()

    def run(self, folder: Path, *, resume: bool = False) -> Result:
        """Train in `folder`.

        Args:
            folder: must not exist, unless `resume`.
            resume: go on from the newest checkpoint; from the start where there is none yet.

        Raises:
            UsageError: the folder exists, is none of a run, or another process is training in it.
            Interrupted: the user asked to stop; a checkpoint is written.
        """
        started = time.perf_counter()
        self.folder = folder
        with contextlib.ExitStack() as held:

            def begin() -> None:
                held.enter_context(hold(folder) if resume else make(folder))
                if not resume:
                    write_json(folder / DATA, data_facts(self.plan))
                    keep_subset(self.config.data, folder)

            by_the_first(self.ranks, begin)
            return self._carry_out(folder, resume, started)

    def _carry_out(self, folder: Path, resume: bool, started: float) -> Result:
        device = self.accelerator.device
        made_with = environment(self.plan, device, read_environment(folder) if resume else None)
        # Nobody writes it anew before all have read it.
        made_with = self.ranks.gather_objects(made_with)[0]
        self.stop.way_on = how_to_resume(folder, made_with)
        state = load_state(folder, self.note) if resume else None
        if state is not None:
            self._restore(folder, state, version_changes(made_with))
        # The settings last, since they are what makes the folder a run's.
        by_the_first(self.ranks, lambda: write_json(folder / ENVIRONMENT, made_with))
        if not resume:
            by_the_first(self.ranks, lambda: save_config(self.config, folder / CONFIG))
        forget_peak(device)
        if state is None:
            self._best: dict[str, Any] = {"epoch": 0, "top1": -1.0}
            self._best_is_new = False
        self._saved = state is not None
        before = Spent(**state["spent"]) if state else Spent()
        self._stage = before.stage_seconds, before.stage_passes
        self._spent = lambda: Spent(
            seconds=before.seconds + time.perf_counter() - started + self._kept.seconds,
            side_passes=before.side_passes + self.side_passes,
            peak_bytes=max(filter(None, (before.peak_bytes, peak_bytes(device))), default=None),
            stage_seconds=self._stage[0],
            stage_passes=self._stage[1],
        )
        if self.accelerator.is_main_process:
            self.recorder = Recorder(
                folder, self.config, epochs_done=state["loop"]["epoch"] if state else 0, note=self.note
            )
        try:
            with self.stop:
                if state is None:
                    begun_at = time.perf_counter()
                    self.methods.pre_train_stage()
                    if any("pre_train_stage" in hook_implementations(c.cls) for c in self.plan.chosen):
                        self._stage = time.perf_counter() - begun_at + self._kept.seconds, self.side_passes
                    if self.loop.average is not None:
                        # A stage may have changed the network, and the average begins where the training does.
                        self.loop.average.set(self.network)
                    # From here on torch's own generator serves dropout; what a stage drew must not show.
                    torch.manual_seed(derive(self.config.seed, "torch", self.ranks.rank))
                    self._save()
                self.loop.run(self._end_epoch, self._save, enough=self._enough)
            if (done := self.loop.position.epoch) < self.config.optim.epochs:
                self.note(f"stopped after epoch {done}: {self.config.train.patience} epochs without a better accuracy.")
            return self._finish()
        except (Interrupted, KeyboardInterrupt) as stopped:
            at_once = " at once" if isinstance(stopped, KeyboardInterrupt) else ""
            raise Interrupted(
                f"interrupted{at_once}; what was done is kept. Go on with: {self.stop.way_on}",
                getattr(stopped, "number", signal.SIGINT),
            ) from None
        except Exception as error:
            known = too_many_open_files(error) or error
            if isinstance(known, OSError | ValueError) and self.accelerator.is_main_process:
                # Whatever could not be read or written there.
                refuse_lost(folder)
            if not isinstance(known, AuguryError):
                raise
            raise with_a_way_on(known, folder / CONFIG, self.stop.way_on) from error.__cause__
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _restore(self, folder: Path, state: dict[str, Any], changes: list[str]) -> None:
        """Go on where a checkpoint was taken, and say what has changed since."""
        try:
            notes = self.loop.restore(state["loop"])
        except UsageError as error:
            raise UsageError("\n".join([*str(error).splitlines(), *changes])) from error
        except Exception as error:
            # A file from elsewhere can fail here in any way.
            told = " ".join(str(error).split()[:30])
            raise UsageError(
                f"{folder}: the checkpoint is none of this run's settings ({type(error).__name__}: {told}). "
                "Start the run anew."
            ) from error
        for line in [*changes, *notes]:
            self.note(line)
        position, steps = self.loop.position, self.loop.loader.steps
        if position.epoch < self.config.optim.epochs:
            self.reporter.note(
                f"goes on in epoch {position.epoch + 1} of {self.config.optim.epochs}, {position.step} of its {steps} "
                "steps done"
            )
        self._best, self._best_is_new = state["best"], False
        epoch, kept = self._best["epoch"], self._epoch_of_best()
        if epoch == self.loop.position.epoch and not self.loop.position.step and kept != epoch:
            # The checkpoint of an epoch is written first: killed in between, its weights are in the network still.
            self._save_weights("best")
        elif epoch and kept != epoch:
            self._lose_best()

    def _epoch_of_best(self) -> int | None:
        """The epoch of the weights in the folder, as the first process finds it."""
        assert self.folder is not None
        return self.ranks.gather_objects(weights_epoch(self.folder / BEST) if self.ranks.rank == 0 else None)[0]

    def _lose_best(self) -> None:
        """Say that the best weights are not those of the best epoch, which others count from now on."""
        assert self.folder is not None
        self.note(
            f"{self.folder / BEST}: gone, damaged, or of an epoch that is done again, so the best epoch until now, "
            f"{self._best['epoch']}, is lost; the best of those from here on counts."
        )
        self._best = {"epoch": self.loop.position.epoch, "top1": -1.0}

    @property
    def chooses(self) -> str:
        """The split on which the best epoch is chosen: `val`, or `test` under the papers' protocol."""
        return "test" if self.data.splits.val is None else "val"

    def _evaluate(self, split: str, network: nn.Module) -> dict[str, float]:
        batches = self._unless_stopped(self.feed.held_out(getattr(self.data.splits, split), ranks=self.ranks))
        with self.loop.whole(), self.accelerator.autocast():
            return top1_and_loss(network, batches, self._shown.normalise, self.ranks)

    def _unless_stopped(self, batches: Iterator[T]) -> Iterator[T]:
        """The same, until a stop is asked for. Several processes agree on one at a step only."""
        for batch in batches:
            if self.stop.asked and self.ranks.size == 1:
                raise self.stop.interrupted()
            yield batch

    def _measure(self, network: nn.Module) -> dict[str, Measures]:
        """How good a network is on each split that was held out."""
        found = {}
        for name in ("val", "test"):
            if (split := getattr(self.data.splits, name)) is not None:
                with self.loop.whole(), self.accelerator.autocast():
                    mine = logits_of(network, self.feed.held_out(split, ranks=self.ranks), self._shown.normalise)
                found[name] = measure(*gather_logits(*mine, self.ranks, self.accelerator.device))
        return found

    def _end_epoch(self, row: dict[str, Any]) -> float:
        split = self.chooses
        self._share_statistics(self.network, self.loop.result)
        found = self._evaluate(split, self.network)
        row |= {f"{split}_{key}": value for key, value in found.items()}
        if self.loop.average is not None:
            found = self._evaluate(split, self.loop.average.module)
            row |= {f"{split}_ema_{key}": value for key, value in found.items()}
        _refuse_lost(row, split)
        row |= self.methods.post_epoch(row)
        # What a method makes of the network at the end is not there before.
        counts = not self.methods.keeps_last or row["epoch"] == self.config.optim.epochs
        if counts and found["top1"] > self._best["top1"]:
            self._best = {"epoch": row["epoch"], "top1": found["top1"]}
            self._best_is_new = True
        if self.recorder is not None:
            self.recorder.row(row)
        return found["top1"]

    def _enough(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.loop.position.epoch - self._best["epoch"] >= patience

    def _save(self) -> None:
        """Keep the present state, and then the weights that are the best of it."""
        state: dict[str, Any] = {"loop": self.loop.state(), "best": self._best}
        state |= {"spent": dataclasses.asdict(self._spent())}
        state |= {"accumulation": self.config.optim.accumulation, "halved": list(self.halved)}
        if self.accelerator.is_main_process and self.folder is not None:
            refuse_lost(self.folder)
            place, step = self.folder / CHECKPOINTS, self.methods.run.step
            lost = self._saved and not place.exists()
            try:
                save_checkpoint(self.folder, step, state)
            except WriteError:
                # It may have been removed just now.
                refuse_lost(self.folder)
                if not self._saved or place.exists():
                    raise
                lost = True
                save_checkpoint(self.folder, step, state)
            self._saved = True
            if lost:
                self.note(
                    f"{place}: removed while the run trained. It is made anew, with the present checkpoint; nothing is "
                    "lost."
                )
        if self._best_is_new:
            self._save_weights("best")
            self._best_is_new = False

    def _save_weights(self, which: str) -> None:
        weights = self.loop.weights()
        if self.accelerator.is_main_process and self.folder is not None:
            path, epoch = self.folder / f"{which}.safetensors", self.loop.position.epoch
            save_weights(path, weights, weights_metadata(self.plan) | {"epoch": str(epoch)})

    def _finish(self) -> Result:
        assert self.folder is not None
        if self.accelerator.is_main_process:
            refuse_lost(self.folder)
        self._save_weights("last")
        if self._epoch_of_best() != self._best["epoch"]:
            if self._best["epoch"] < self.loop.position.epoch:
                self._lose_best()
            self._save_weights("best")
        network = self.loop.result
        best = last = self._measure(network)
        if self._best["epoch"] < self.loop.position.epoch:
            self.loop.load_weights(load_weights(self.folder / BEST)[0])
            best = self._measure(network)
        self._note_guessing(best)
        rows = read_rows(self.folder / METRICS)
        seconds, spent = sum(row["train_seconds"] for row in rows), self._spent()
        result = Result(
            folder=str(self.folder),
            epochs=self.loop.position.epoch,
            chosen_on=self.chooses,
            weights="raw" if self.loop.average is None else "ema",
            best_epoch=self._best["epoch"],
            best=best,
            last=last,
            costs=Costs(
                seconds=spent.seconds,
                stage_seconds=spent.stage_seconds,
                # A metrics.jsonl that was lost tells of no epoch.
                images_per_second=sum(row["images_per_second"] * row["train_seconds"] for row in rows)
                / (seconds or 1.0),
                forward_passes=self.loop.passes + spent.side_passes,
                stage_passes=spent.stage_passes,
                peak_bytes=spent.peak_bytes,
            ),
            notes=self.notes,
        )
        if self.accelerator.is_main_process:
            write_result(result, self.folder)
        return result

    def _note_guessing(self, best: dict[str, Measures]) -> None:
        for name, found in best.items():
            labels = getattr(self.data.splits, name).labels
            guess = 100 * int(labels.bincount().max()) / len(labels)
            if found.top1 <= guess:
                self.note(
                    f"the network is no better than always naming the most frequent class ({guess:.1f} % of the {name} "
                    "images). Train longer, or lower optim.lr."
                )
                return


def train(
    config: RunConfig,
    folder: Path,
    *,
    register: Register | None = None,
    reporter: Reporter | None = None,
    data: DataSet | None = None,
    others: Sequence[Path] = (),
    introduced: bool = True,
) -> Result:
    """Train as `config` says, in a new `folder`.

    Args:
        config: the run's settings.
        folder: the run folder; it must not exist.
        register: what method names mean.
        reporter: who watches.
        data: what `config` stands for, where it is open already.
        others: as for `Trainer`.
        introduced: whether the reporter is told what the run runs on; a suite tells it once for all its runs.

    Raises:
        UsageError: the folder exists, or anything that `make_plan` refuses.
    """
    folder = given_path(folder, "--output")
    ranks = join(config)
    with losing_peers_told(ranks, folder):
        by_the_first(ranks, lambda: refuse_existing(folder))
        plan = one_before_the_others(ranks, lambda: make_plan(config, register, data))
        # Checked first, so that all that is wrong is told at once. What `auto` means, the first process says.
        plan = dataclasses.replace(plan, config=lasting(config), loader=ranks.gather_objects(plan.loader)[0])
        refuse_inside_data(folder, plan.config)
        if introduced and reporter is not None and ranks.rank == 0:
            introduce(plan, reporter)
        return _carry_out(lambda plan: Trainer(plan, reporter=reporter, others=others), plan, folder)


def resume(
    folder: Path,
    *,
    register: Register | None = None,
    reporter: Reporter | None = None,
    data: DataSet | None = None,
    others: Sequence[Path] = (),
    introduced: bool = True,
) -> Result:
    """Go on with the run in `folder`; a finished one only returns its result. Arguments as for `train`.

    Raises:
        UsageError: no run folder, a damaged one, or one with a link out of it.
    """
    folder = given_path(folder, "RUN")
    refuse_ways_out(folder)
    config = own_subset(load_config(folder / CONFIG), folder)
    if (folder / RESULT).exists():
        if reporter is not None:
            reporter.note(f"{folder}: this run is finished; nothing is trained.")
        return read_result(folder)
    ranks = join(config)
    with losing_peers_told(ranks, folder):
        refuse_lost_classes(folder, config, register)
        before = begun(folder)
        if data is not None and data.format != before.format:
            data = None
        config, halved = _as_halved(config, folder)
        fresh = not checkpoints(folder)
        _refuse_without_checkpoints(folder, fresh)
        plan = one_before_the_others(ranks, lambda: make_plan(config, register, data, before.format, fresh=fresh))
        check_same_data(folder, before, plan.data)
        # `auto` may choose otherwise on another day, and then the draws would be others.
        plan = dataclasses.replace(plan, loader=before.loader)
        if checkpoints(folder):
            # The weights that the run began with may be gone, and are not needed.
            plan = plan.from_scratch()
        if introduced and reporter is not None and ranks.rank == 0:
            introduce(plan, reporter)
        return _carry_out(
            lambda plan: Trainer(plan, reporter=reporter, others=others), plan, folder, resume=True, halved=halved
        )


def _carry_out(build: Callable[[Plan], Trainer], plan: Plan, folder: Path, **how: Any) -> Result:
    try:
        return within_memory(build, plan, folder, **how)
    except NotFinite as error:
        other = shlex.join(["augury", "run", "--recipe", str(folder / CONFIG), "--output", f"{folder}-2"])
        raise NotFinite(
            f"{error}\nA run that goes on keeps its settings, and would meet the same. With others, begin a new one: "
            f"{other} --set ..."
        ) from None


def _refuse_without_checkpoints(folder: Path, fresh: bool) -> None:
    """Raises: UsageError where a run had checkpoints that are gone."""
    if fresh and (folder / METRICS).exists() and (folder / METRICS).stat().st_size:
        raise UsageError(
            f"{folder}: {METRICS} tells of epochs that are done, and checkpoints/ holds none. Bring a copy of it back, "
            "or start the run anew with another --output."
        )


def _refuse_lost(row: Mapping[str, Any], split: str) -> None:
    """Raises: NotFinite where a network of finite losses in training has none in evaluation."""
    for key in (f"{split}_loss", f"{split}_ema_loss"):
        if not math.isfinite(row.get(key, 0.0)):
            raise NotFinite(
                f"training: the loss on the {split} images is no longer finite after epoch {row['epoch']} ({key}): the "
                "epoch's last step took the weights, or its steps BatchNorm's statistics, beyond float32.\n"
                "Lower optim.lr, to a third say, or raise schedule.warmup_epochs."
            )


def _as_halved(config: RunConfig, folder: Path) -> tuple[RunConfig, tuple[str, ...]]:
    """The settings with as few images at once as the run had at its newest checkpoint, and what it told of that."""
    state = load_state(folder) if config.train.auto_batch else None
    if not state or not state.get("halved"):
        return config, ()
    optim = config.optim.model_copy(update={"accumulation": int(state["accumulation"])})
    return config.model_copy(update={"optim": optim}), tuple(map(str, state["halved"]))
