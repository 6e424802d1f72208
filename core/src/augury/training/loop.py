"""The training loop: one network, one composition, from any step to the end."""

from __future__ import annotations

import inspect
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from timm.optim import create_optimizer_v2, get_optimizer_class
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from augury.batch import Batch
from augury.composition import Composition
from augury.config import OptimConfig
from augury.data.memory import MemoryLoader
from augury.distributed import Ranks
from augury.errors import AuguryError
from augury.training.step import Step


class Reporter(Protocol):
    """Who watches a training: a progress bar, or nobody."""

    def start(self, what: str, total_steps: int, done: int) -> None:
        """A training of `total_steps` begins, `done` of them already made."""

    def step(self, images: int) -> None:
        """An optimiser step of so many images is made."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch's row is written."""

    def stop(self) -> None:
        """This training is over."""


class Silent:
    """Watches nothing."""

    def start(self, what: str, total_steps: int, done: int) -> None:
        return None

    def step(self, images: int) -> None:
        return None

    def epoch(self, row: dict[str, Any]) -> None:
        return None

    def stop(self) -> None:
        return None


class Interrupted(AuguryError):
    """The user asked to stop; what was done is kept."""

    exit_code = 130


class StopRequest:
    """Ctrl-C asks for a stop at the next step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> StopRequest:
        self._before = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class Tally:
    """Sums over the steps of an epoch, on the device; nothing is read from it before the epoch ends."""

    loss: Tensor
    correct: Tensor
    steps: int = 0
    unmixed_rows: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, device: torch.device) -> Tally:
        return cls(
            torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.int64, device=device)
        )

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        self.loss += loss.detach()
        self.steps += 1
        if not batch.mixed:
            self.correct += (logits.argmax(1) == batch.labels[:, 0]).sum()
            self.unmixed_rows += len(batch)

    def row(self, images_per_step: int, ranks: Ranks) -> dict[str, Any]:
        """The epoch's numbers. `train_top1` is measured on the batches that no method mixed, None where all were
        mixed."""
        top1 = 100 * float(ranks.mean(self.correct.double())) / self.unmixed_rows if self.unmixed_rows else None
        rate = self.steps * images_per_step / self.seconds if self.seconds else 0.0
        return {
            "train_loss": float(ranks.mean(self.loss)) / self.steps,
            "train_top1": top1,
            "train_seconds": self.seconds,
            "images_per_second": rate,
        }


@dataclass
class Position:
    """How far a training is: epochs done, batches of the current one done, and what was summed over those."""

    tally: Tally
    epoch: int = 0
    batch: int = 0


@dataclass
class Loop:
    """One training in progress.

    Attributes:
        network, methods, loader: what is trained, with what, on what.
        epochs: how many.
        on_augmented: called with the first batch of a fresh training, before and after the methods changed it.
    """

    accelerator: Accelerator
    network: nn.Module
    methods: Composition
    loader: MemoryLoader
    config: OptimConfig
    reporter: Reporter
    stop: StopRequest
    on_augmented: Callable[[Batch, Tensor], None] | None = None
    position: Position = field(init=False)

    def __post_init__(self) -> None:
        step = Step(self.network, self.methods)
        optimizer = create_optimizer_v2(
            step,
            opt=self.config.name,
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            momentum=self.config.momentum,
            filter_bias_and_bn=False,
            **_fastest(self.config.name, self.accelerator.device),
        )
        self.step_module, self.optimizer = self.accelerator.prepare(step, optimizer)
        self.scheduler, _ = create_scheduler_v2(
            optimizer,
            sched="cosine",
            num_epochs=self.config.epochs,
            warmup_epochs=self.config.warmup_epochs,
            warmup_prefix=False,
            min_lr=self.config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=self.loader.steps,
        )
        self.scheduler.step_update(0)
        self.position = Position(Tally.empty(self.accelerator.device))

    def run(
        self,
        end_epoch: Callable[[dict[str, Any]], None],
        save: Callable[[], None] | None = None,
        what: str = "training",
    ) -> None:
        """Train from the present position to the end.

        Args:
            end_epoch: gets each epoch's row when it is complete.
            save: keeps the present state; called when a stop was asked for.
            what: what the reporter calls this training.

        Raises:
            Interrupted: a stop was asked for.
        """
        total = self.config.epochs * self.loader.steps
        self.reporter.start(what, total, self.methods.run.step)
        try:
            while self.position.epoch < self.config.epochs:
                self._epoch(save)
                row = {
                    "epoch": self.position.epoch,
                    "step": self.methods.run.step,
                    "lr": self.optimizer.param_groups[0]["lr"],
                }
                row |= self.position.tally.row(self.config.batch_size, self.methods.run.ranks)
                self.position.tally = Tally.empty(self.accelerator.device)
                end_epoch(row)
                self.reporter.epoch(row)
        finally:
            self.reporter.stop()

    def _epoch(self, save: Callable[[], None] | None) -> None:
        position, tally = self.position, self.position.tally
        self.step_module.train()
        started = time.perf_counter() - tally.seconds
        for batch in self.loader.epoch(position.epoch, start=position.batch):
            before = batch.images.clone() if self.on_augmented and self.methods.run.step == 0 else None
            self.methods.augment_batch(batch)
            if before is not None and self.on_augmented:
                drawing = time.perf_counter()
                self.on_augmented(batch, before)
                started += time.perf_counter() - drawing
            loss, logits = self.step_module(batch)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.methods.step()
            self.scheduler.step_update(self.methods.run.step)
            tally.add(loss, logits, batch)
            position.batch += 1
            self.reporter.step(self.config.batch_size)
            if self.stop.asked:
                tally.seconds = time.perf_counter() - started
                if save is not None:
                    save()
                raise Interrupted("interrupted")
        # Reading the loss waits for the device, so the time below is that of finished work.
        float(tally.loss)
        tally.seconds = time.perf_counter() - started
        position.epoch, position.batch = position.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        tally = self.position.tally
        scalars = self.methods.run.scalars
        return {
            "network": self.network.state_dict(),
            "methods": dict(self.methods.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.position.epoch,
            "batch": self.position.batch,
            "tally": vars(tally),
            "scalars": {"sums": scalars.sums, "counts": scalars.counts},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.accelerator.device.type == "cuda" else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        device = self.accelerator.device
        self.network.load_state_dict(state["network"])
        self.methods.load_state_dict(state["methods"])
        self.optimizer.load_state_dict(state["optimizer"])
        tally = Tally(**state["tally"])
        tally.loss, tally.correct = tally.loss.to(device), tally.correct.to(device)
        self.position = Position(tally, state["epoch"], state["batch"])
        scalars = self.methods.run.scalars
        scalars.sums = {name: value.to(device) for name, value in state["scalars"]["sums"].items()}
        scalars.counts = dict(state["scalars"]["counts"])
        self.scheduler.step_update(self.methods.run.step)
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])


def _fastest(name: str, device: torch.device) -> dict[str, Any]:
    """One kernel for all parameters, where the optimiser has one: SGD on the CPU takes a fifth of the time."""
    fused = "fused" in inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return {"fused": True} if fused and device.type in ("cpu", "cuda") else {}
