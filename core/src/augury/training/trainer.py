"""A whole run: from settings to a folder with a trained network."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from augury.config import RunConfig, load_config, save_config
from augury.data.subset import keep_subset, own_subset
from augury.data.view import DataSet
from augury.errors import AuguryError, UsageError
from augury.files import write_text
from augury.measures import Measures, logits_of, measure, top1_and_loss
from augury.method import hook_implementations
from augury.randomness import derive
from augury.registry import Register
from augury.training.built import Built
from augury.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint, save_weights
from augury.training.costs import Spent, forget_peak, peak_bytes
from augury.training.environment import (
    ENVIRONMENT,
    environment,
    how_to_resume,
    read_environment,
    refuse_lost_classes,
    version_changes,
)
from augury.training.facts import DATA, begun, check_same_data, data_facts, weights_metadata
from augury.training.plan import lasting, make_plan, refuse_inside_data
from augury.training.recorder import METRICS, Recorder, read_rows
from augury.training.result import RESULT, Costs, Result, read_result, write_result
from augury.training.watch import Interrupted, Reporter

CONFIG = "config.json"


class Trainer(Built):
    """One run, carried out in a folder."""

    def run(self, folder: Path, *, resume: bool = False) -> Result:
        """Train in `folder`.

        Args:
            folder: must not exist, unless `resume`.
            resume: go on from the newest checkpoint; from the start where there is none yet.

        Raises:
            UsageError: the folder exists, or is none of a run.
            Interrupted: the user asked to stop; a checkpoint is written.
        """
        started = time.perf_counter()
        self.folder = folder
        if not resume:
            _make_folder(folder)
            _write_json(folder / DATA, data_facts(self.plan))
            keep_subset(self.config.data, folder)
        device = self.accelerator.device
        made_with = environment(self.plan, device, read_environment(folder) if resume else None)
        state = load_checkpoint(folder) if resume else None
        if state:
            self._restore(state["loop"], version_changes(made_with))
        _write_json(folder / ENVIRONMENT, made_with)
        if not resume:
            # Last, since this is what makes the folder a run's.
            save_config(self.config, folder / CONFIG)
        forget_peak(device)
        self._best: dict[str, Any] = state["best"] if state else {"epoch": 0, "top1": -1.0}
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
            self.recorder = Recorder(folder, self.config, epochs_done=state["loop"]["epoch"] if state else 0)
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
        except Interrupted:
            how = how_to_resume(folder, made_with)
            raise Interrupted(f"interrupted; what was done is kept. Go on with: {how}") from None
        finally:
            if self.recorder is not None:
                self.recorder.close()

    def _restore(self, state: dict[str, Any], changes: list[str]) -> None:
        """Go on where a checkpoint was taken, and say what has changed since."""
        try:
            self.loop.restore(state)
        except UsageError as error:
            raise UsageError("\n".join([*str(error).splitlines(), *changes])) from error
        for line in changes:
            self.note(line)

    @property
    def chooses(self) -> str:
        """The split on which the best epoch is chosen: `val`, or `test` under the papers' protocol."""
        return "test" if self.data.splits.val is None else "val"

    def _evaluate(self, split: str, network: nn.Module) -> dict[str, float]:
        batches = self.feed.held_out(getattr(self.data.splits, split))
        with self.accelerator.autocast():
            found = top1_and_loss(network, batches, self._shown.normalise)
        # BatchNorm's statistics are each rank's own, and what decays or stops must do so on all: the first one's count,
        # whose weights are exported.
        mine = torch.tensor([list(found.values())], dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(found, self.ranks.gather_rows(mine)[0].tolist(), strict=True))

    def _measure(self, network: nn.Module) -> dict[str, Measures]:
        """How good a network is on each split that was held out."""
        found = {}
        for name in ("val", "test"):
            if (split := getattr(self.data.splits, name)) is not None:
                with self.accelerator.autocast():
                    found[name] = measure(*logits_of(network, self.feed.held_out(split), self._shown.normalise))
        return found

    def _end_epoch(self, row: dict[str, Any]) -> float:
        if not math.isfinite(row["train_loss"]):
            raise AuguryError(
                f"training: the loss is no longer finite in epoch {row['epoch']}. Lower optim.lr, to a third say, "
                "raise schedule.warmup_epochs, or bound the gradients with --set optim.clip=1."
            )
        split = self.chooses
        found = self._evaluate(split, self.network)
        row |= {f"{split}_{key}": value for key, value in found.items()}
        if self.loop.average is not None:
            found = self._evaluate(split, self.loop.average.module)
            row |= {f"{split}_ema_{key}": value for key, value in found.items()}
        row |= self.methods.post_epoch(row)
        if found["top1"] > self._best["top1"]:
            self._best = {"epoch": row["epoch"], "top1": found["top1"]}
            self._save_weights("best")
        if self.recorder is not None:
            self.recorder.row(row)
        return found["top1"]

    def _enough(self) -> bool:
        patience = self.config.train.patience
        return patience is not None and self.loop.position.epoch - self._best["epoch"] >= patience

    def _save(self) -> None:
        if self.accelerator.is_main_process and self.folder is not None:
            state = {"loop": self.loop.state(), "best": self._best, "spent": dataclasses.asdict(self._spent())}
            save_checkpoint(self.folder, self.methods.run.step, state)

    def _save_weights(self, which: str) -> None:
        if self.accelerator.is_main_process and self.folder is not None:
            path = self.folder / f"{which}.safetensors"
            save_weights(path, self.loop.result.state_dict(), weights_metadata(self.plan))

    def _finish(self) -> Result:
        assert self.folder is not None
        self._save_weights("last")
        network = self.loop.result
        best = last = self._measure(network)
        if self._best["epoch"] < self.loop.position.epoch:
            weights = load_file(self.folder / "best.safetensors", device=str(self.accelerator.device))
            network.load_state_dict(weights)
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
                images_per_second=sum(row["images_per_second"] * row["train_seconds"] for row in rows) / seconds,
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
) -> Result:
    """Train as `config` says, in a new `folder`; `others` as for `Trainer`.

    Raises:
        UsageError: the folder exists, or anything that `make_plan` refuses.
    """
    _refuse_existing(folder)
    plan = make_plan(config, register, data)
    # Checked first, so that all that is wrong is told at once.
    plan = dataclasses.replace(plan, config=lasting(config))
    refuse_inside_data(folder, plan.config)
    return Trainer(plan, reporter=reporter, others=others).run(folder)


def resume(
    folder: Path,
    *,
    register: Register | None = None,
    reporter: Reporter | None = None,
    data: DataSet | None = None,
    others: Sequence[Path] = (),
) -> Result:
    """Go on with the run in `folder`; a finished one only returns its result. `others` as for `Trainer`.

    Raises:
        UsageError: no run folder, or a damaged one.
    """
    config = own_subset(load_config(folder / CONFIG), folder)
    if (folder / RESULT).exists():
        return read_result(folder)
    refuse_lost_classes(folder, config, register)
    before = begun(folder)
    if data is not None and data.format != before.format:
        data = None
    plan = make_plan(config, register, data, before.format, fresh=not checkpoints(folder))
    check_same_data(folder, before, plan.data)
    # `auto` may choose otherwise on another day, and then the draws would be others.
    plan = dataclasses.replace(plan, loader=before.loader)
    if checkpoints(folder):
        # The weights that the run began with may be gone, and are not needed.
        plan = plan.from_scratch()
    return Trainer(plan, reporter=reporter, others=others).run(folder, resume=True)


def _refuse_existing(folder: Path) -> None:
    if not folder.exists():
        return
    if (folder / CONFIG).exists():
        raise UsageError(f"{folder} exists. Continue it with `augury resume {folder}`, or choose another --output.")
    raise UsageError(f"{folder} exists and holds no run. Choose another --output.")


def _make_folder(folder: Path) -> None:
    _refuse_existing(folder)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}). Choose another --output.") from None


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
