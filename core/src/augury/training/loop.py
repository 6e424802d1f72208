"""The training loop: one network, one composition, from any step to the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from augury.backbones.stages import keep_statistics
from augury.batch import Batch
from augury.composition import Composition
from augury.config import RunConfig
from augury.data.loader import Loader
from augury.errors import UsageError
from augury.training.labels import LabelPolicy
from augury.training.optimisation import Schedule, clipper, make_optimizer
from augury.training.step import Step
from augury.training.tally import Tally
from augury.training.watch import Interrupted, Reporter, StopRequest

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where `backward` needs nothing of Accelerate's."""


def _rate(group: dict[str, Any]) -> float:
    """The learning rate without the factor of the group's layer."""
    return group["lr"] / group.get("lr_scale", 1.0)


@dataclass
class Position:
    """How far a training is: epochs done, steps of the current one done, what was summed over those, and rows that went
    through the network in all epochs before."""

    tally: Tally
    epoch: int = 0
    step: int = 0
    passes: int = 0


@dataclass
class Loop:
    """One training in progress.

    Attributes:
        network, methods, loader: what is trained, with what, on what.
        labels: what is said of labels before the methods speak.
        config: the run's settings.
        on_augmented: called with the first batch of which the methods left something, as they left it.
        average: the moving average of the network, None where none is kept.
    """

    accelerator: Accelerator
    network: nn.Module
    methods: Composition
    loader: Loader
    labels: LabelPolicy
    config: RunConfig
    reporter: Reporter
    stop: StopRequest
    on_augmented: Callable[[Batch], None] | None = None
    position: Position = field(init=False)
    average: ModelEmaV3 | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        config, device = self.config, self.accelerator.device
        if config.train.channels_last:
            self.network.to(memory_format=torch.channels_last)
        step = Step(
            self.network,
            self.methods,
            compiled=config.train.compile,
            channels_last=config.train.channels_last,
        )
        optimizer = make_optimizer(config.optim, self.network, self.methods, device)
        self.clip = clipper(config.optim, self.accelerator, self.network, self.methods)
        self.step_module, self.optimizer = self.accelerator.prepare(step, optimizer)
        self.schedule = Schedule(config.schedule, optimizer, config.optim.epochs, self.loader.steps)
        if config.train.ema is not None:
            # The decay grows towards the one that was set, so that short trainings forget where they started.
            self.average = ModelEmaV3(self.network, decay=config.train.ema, use_warmup=True)
        self.position = Position(Tally.empty(device))

    @property
    def result(self) -> nn.Module:
        """The network that the training is for: the moving average where one is kept."""
        return self.network if self.average is None else self.average.module

    @property
    def passes(self) -> int:
        """Rows that went through the network so far, in all processes."""
        return self.position.passes + self.position.tally.rows * self.methods.run.ranks.size

    def run(
        self,
        end_epoch: Callable[[dict[str, Any]], float | None],
        save: Callable[[], None] | None = None,
        what: str = "training",
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train from the present position to the end.

        Args:
            end_epoch: gets each epoch's row when it is complete; returns its accuracy on the split that chooses.
            save: keeps the present state; called after each epoch, and when a stop was asked for.
            what: what the reporter calls this training.
            enough: whether to stop before the last epoch.

        Raises:
            Interrupted: a stop was asked for.
        """
        epochs = self.config.optim.epochs
        self.reporter.start(what, epochs * self.loader.steps, self.methods.run.step)
        try:
            while self.position.epoch < epochs and not enough():
                self._epoch(save)
                row = {
                    "epoch": self.position.epoch,
                    "step": self.methods.run.step,
                    "lr": _rate(self.optimizer.param_groups[0]),
                }
                row |= self.position.tally.row(self.methods.run.ranks)
                self.position.passes = self.passes
                self.position.tally = Tally.empty(self.accelerator.device)
                self.schedule.epoch(self.position.epoch, end_epoch(row))
                if save is not None:
                    save()
                self.reporter.epoch(row)
        finally:
            self.loader.close()
            self.reporter.stop()

    def _epoch(self, save: Callable[[], None] | None) -> None:
        position, tally = self.position, self.position.tally
        self.step_module.train()
        keep_statistics(self.network)
        started = time.perf_counter() - tally.seconds
        batches = self.loader.epoch(position.epoch, start=position.step)
        while position.step < self.loader.steps:
            # Showing a training's first batch is none of its time.
            started += self._step(batches)
            position.step += 1
            self.reporter.step(self.config.optim.batch_size)
            if self.stop.asked:
                tally.seconds = time.perf_counter() - started
                if save is not None:
                    save()
                raise Interrupted("interrupted")
        # Reading the loss waits for the device, so the time below is that of finished work.
        float(tally.loss)
        tally.seconds = time.perf_counter() - started
        position.epoch, position.step = position.epoch + 1, 0

    def _step(self, batches: Iterator[Batch]) -> float:
        """One optimiser step, over its parts; returns the seconds that showing a training's first batch took."""
        parts, trained, drawing = self.config.optim.accumulation, 0, 0.0
        for number in range(1, parts + 1):
            batch = next(batches)
            self.labels.prepare(batch)
            drawing += self._augment(batch)
            whole = number == parts
            # A method may have taken all images out.
            if len(batch):
                # Gradients are summed over processes once a step.
                with contextlib.nullcontext() if whole else self.accelerator.no_sync(self.step_module):
                    loss, logits = self.step_module(batch)
                    self._backward(loss / parts if parts > 1 else loss)
                self.position.tally.add(loss, logits, batch)
                trained += 1
        if trained:
            if trained < parts:
                self._rescale(parts / trained, summed=len(batch) > 0)
            self._optimise()
        else:
            self.methods.step()
            self.schedule.step(self.methods.run.step)
        return drawing

    def _backward(self, loss: Tensor) -> None:
        # Accelerate looks for a package on the disk each time, which takes as long as a few small layers.
        if self.accelerator.scaler is None and self.accelerator.distributed_type in _PLAIN:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def _rescale(self, factor: float, summed: bool) -> None:
        """Make the gradients of some parts of a step those of a whole one; `summed` over processes, as the last part's
        backward pass does, or not yet."""
        ranks = self.methods.run.ranks
        for parameter in self.step_module.parameters():
            if parameter.grad is not None:
                whole = parameter.grad if summed else ranks.mean(parameter.grad)
                parameter.grad = whole * factor

    def _augment(self, batch: Batch) -> float:
        """Let the methods change the batch; returns the seconds that showing a training's first one took."""
        self.methods.augment_batch(batch)
        if self.on_augmented is None or not len(batch):
            return 0.0
        drawing = time.perf_counter()
        self.on_augmented(batch)
        self.on_augmented = None
        return time.perf_counter() - drawing

    def _optimise(self) -> None:
        if self.clip is not None:
            self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.methods.step()
        if self.average is not None:
            self.average.update(self.network, self.methods.run.step)
        self.schedule.step(self.methods.run.step)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        scalars = self.methods.run.scalars
        scaler = self.accelerator.scaler
        return {
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "methods": dict(self.methods.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "epoch": self.position.epoch,
            "step": self.position.step,
            "passes": self.position.passes,
            "tally": vars(self.position.tally),
            "scalars": {"sums": scalars.sums, "counts": scalars.counts},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.accelerator.device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            UsageError: a method's state is of another form than the method has here.
        """
        device = self.accelerator.device
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        try:
            self.methods.load_state_dict(state["methods"])
        except RuntimeError as error:
            told = " ".join(str(error).split()[:60])
            raise UsageError(
                f"what the checkpoint holds of the methods does not fit them: {told} Install the version of the "
                "method's package that the run began with, or start the run anew."
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.methods.run.step:
            self.on_augmented = None  # it was shown when the training began
        tally = Tally(**state["tally"])
        tally.loss, tally.correct = tally.loss.to(device), tally.correct.to(device)
        self.position = Position(tally, state["epoch"], state["step"], state["passes"])
        scalars = self.methods.run.scalars
        scalars.sums = {name: value.to(device) for name, value in state["scalars"]["sums"].items()}
        scalars.counts = dict(state["scalars"]["counts"])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
