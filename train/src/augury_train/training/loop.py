"""The training loop: one network, one composition, from any step to the end."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from augury.batch import Batch
from augury.composition import Composition
from augury.distributed import waiting
from augury.errors import AuguryError, UsageError
from augury.randomness import derive
from augury_train.backbones.recomputing import statistics_kept
from augury_train.backbones.stages import keep_statistics
from augury_train.config import RunConfig
from augury_train.data.loader import Loader
from augury_train.formats import FORMAT, check_format
from augury_train.training.agreement import Agreement
from augury_train.training.finite import Guard, NotFinite
from augury_train.training.labels import LabelPolicy
from augury_train.training.optimisation import Schedule, clipper, make_optimizer
from augury_train.training.ranks import shared_out
from augury_train.training.sam import SharpnessAware
from augury_train.training.sharded import Sharding
from augury_train.training.step import Step
from augury_train.training.tally import Tally, from_format_1
from augury_train.training.watch import Interrupted, Reporter, StopRequest

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Where `backward` needs nothing of Accelerate's."""


def _rate(group: dict[str, Any]) -> float:
    """The learning rate without the factor of the group's layer."""
    return group["lr"] / group.get("lr_scale", 1.0)


def _dropout_state(device: torch.device) -> list[Tensor]:
    """The state of torch's generators, from which dropout draws."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_dropout_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], device)


@dataclass
class _Passed:
    """A part of a step that has passed the network.

    Attributes:
        batch: its rows.
        divisor: of its gradient.
        whole: whether it is the last part.
        dropout: the state of torch's generators before the pass.
    """

    batch: Batch
    divisor: float
    whole: bool
    dropout: list[Tensor]


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
        # Before the optimiser is made: the parameters are others then.
        self.sharding = Sharding.of(self.network, device, self.methods.run.ranks)
        fused = self.sharding is None
        optimizer = make_optimizer(config.optim, self.network, self.methods, device, fused=fused)
        self.clip = clipper(config.optim, self.accelerator, self.network, self.methods, sharded=not fused)
        self.step_module: nn.Module
        if self.sharding is None:
            self.step_module, self.optimizer = self.accelerator.prepare(step, optimizer)
        else:
            self.sharding.try_optimizer(config.optim, device)
            self.step_module = self.sharding.step(step, self.accelerator)
            self.optimizer = self.accelerator.prepare_optimizer(optimizer, device_placement=False)
        self.schedule = Schedule(config.schedule, optimizer, config.optim.epochs, self.loader.steps)
        if config.train.ema is not None:
            self.average = ModelEmaV3(self.network, decay=config.train.ema, use_warmup=config.train.ema_warmup)
        self.position = Position(Tally.empty(device))
        self._agreed = Agreement(self.methods.run.ranks)
        self._save: Callable[[], None] | None = None
        self.guard = Guard(self)
        rho = config.optim.sam
        self.sam = None if rho is None else SharpnessAware(rho, self.step_module.parameters())
        self.times = 1 if self.sam is None else 2
        """How often a row passes the network in a step."""

    @property
    def result(self) -> nn.Module:
        """The network that the training is for: the moving average where one is kept."""
        return self.network if self.average is None else self.average.module

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """While every process computes with the network by itself, where weights are spread over processes."""
        return contextlib.nullcontext() if self.sharding is None else self.sharding.whole()

    def weights(self) -> dict[str, Tensor]:
        """Those of `result`, in the first process at least; all processes must ask."""
        return self.result.state_dict() if self.sharding is None else self.sharding.weights()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Let `result` have them; every process must be given them."""
        if self.sharding is None:
            self.result.load_state_dict(weights)
        else:
            self.sharding.load(weights)

    @property
    def passes(self) -> int:
        """Rows that went through the network so far, in all processes."""
        return self.position.passes + self.times * self.position.tally.rows * self.methods.run.ranks.size

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
        self._save = save
        self.reporter.start(what, epochs * self.loader.steps, self.methods.run.step)
        try:
            while self.position.epoch < epochs and not enough():
                self._epoch()
                position = self.position
                position.epoch, position.step = position.epoch + 1, 0
                row = {"epoch": position.epoch, "step": self.methods.run.step}
                row |= position.tally.row(self.methods.run.ranks)
                try:
                    top1 = end_epoch(row)
                except Interrupted:
                    # As before it was looked at: all steps of the epoch are done.
                    position.epoch, position.step = position.epoch - 1, self.loader.steps
                    self._keep()
                    raise
                position.passes = self.passes
                position.tally = Tally.empty(self.accelerator.device)
                self.schedule.epoch(position.epoch, top1)
                self._keep()
                self.reporter.epoch(row)
        finally:
            self.loader.close()
            self.reporter.stop()

    def _keep(self) -> None:
        """Keep the present state.

        Raises:
            NotFinite: the weights are not finite, though the steps' numbers were; nothing is kept.
        """
        self.guard.settle()
        self._refuse_broken()
        if self._save is not None:
            self._save()

    @torch.no_grad()
    def _refuse_broken(self) -> None:
        # A share of spread weights is looked at where it lies; a process may hold none of some.
        local = [getattr(p, "_local_tensor", p.detach()) for p in self.network.parameters()]
        largest = torch._foreach_norm([weights for weights in local if weights.numel()], float("inf"))
        fine = torch.stack([found.float() for found in largest]).isfinite().all().float()
        if not bool(self.methods.run.ranks.mean(fine) == 1):
            raise NotFinite(
                f"{self.guard.what}: the weights are no longer finite after step {self.methods.run.step}, though its "
                "loss and gradients were. Lower optim.lr, to a third say, or raise schedule.warmup_epochs."
            )

    def _epoch(self) -> None:
        """The steps of the present epoch that are left."""
        position, tally = self.position, self.position.tally
        self.step_module.train()
        keep_statistics(self.network)
        started, every = time.perf_counter() - tally.seconds, self.config.train.save_every
        batches = self._loaded()
        while position.step < self.loader.steps:
            # Showing a training's first batch is none of its time.
            started += self._step(batches)
            position.step += 1
            self.reporter.step(self.config.optim.batch_size)
            stopped = self._agreed(self.stop.asked)
            if stopped or (every is not None and self.methods.run.step % every == 0):
                tally.seconds = time.perf_counter() - started
                self._keep()
                started = time.perf_counter() - tally.seconds
            if stopped:
                raise self.stop.interrupted()
        # Reading the loss waits for the device, so the time below is that of finished work.
        float(tally.loss)
        tally.seconds = time.perf_counter() - started
        self.guard.settle()

    def _loaded(self) -> Iterator[Batch]:
        """The batches of the epoch that are left. Where one cannot be loaded, what was done until then is kept."""
        batches = iter(self.loader.epoch(self.position.epoch, start=self.position.step))
        for number in itertools.count():
            try:
                batch = next(batches)
            except StopIteration:
                return
            except AuguryError:
                # In the middle of a step, or where others go on, there is no state to keep.
                if number % self.config.optim.accumulation == 0 and self.methods.run.ranks.size == 1:
                    self._keep()
                    if self.stop.asked:
                        # Whoever asked may have stopped the processes that read, too.
                        raise self.stop.interrupted() from None
                raise
            yield batch

    def _step(self, batches: Iterator[Batch]) -> float:
        """Make one optimiser step, over its parts; return the seconds that showing a training's first batch took.

        Its gradient is that of the mean over all rows that methods left in the step, however these are spread over its
        parts. (Every process has equally many, as `Batch.take` asks.)
        """
        parts, planned, rows, drawing = self.config.optim.accumulation, 0, 0, 0.0
        passed: list[_Passed] = []
        self.guard.begin()
        for number in range(1, parts + 1):
            batch = next(batches)
            # All parts of a step are equally long until methods take rows out.
            planned = parts * len(batch)
            self.labels.prepare(batch)
            drawing += self._augment(batch)
            whole = number == parts
            # A method may have taken all images out.
            if len(batch):
                divisor = planned / len(batch) if parts > 1 else 1.0
                if self.sam is not None:
                    passed.append(_Passed(batch, divisor, whole, _dropout_state(batch.device)))
                loss, logits = self._pass(batch, divisor, whole)
                self.position.tally.add(loss, logits, batch)
                rows += len(batch)
        if rows:
            if self.sam is not None:
                self._pass_again(self.sam, passed)
            if parts > 1 and rows < planned:
                self._rescale(planned / rows, summed=len(batch) > 0 or self.sharding is not None)
            self._optimise()
        else:
            self.methods.step(changed=False)
            self.schedule.step(self.methods.run.step)
        return drawing

    def _pass(self, batch: Batch, divisor: float, whole: bool) -> tuple[Tensor, Tensor]:
        """Pass a part of a step, whose gradient is divided by `divisor`; `whole`: it is the last one. Return its loss
        and its logits."""
        # Gradients are summed over processes once a step.
        with contextlib.nullcontext() if whole else self.accelerator.no_sync(self.step_module), waiting:
            loss, logits = self.step_module(batch)
            if not self.methods.run.again:
                self.guard.loss(loss, batch)
            self._backward(loss if divisor == 1 else loss / divisor)
        return loss, logits

    def _pass_again(self, sam: SharpnessAware, passed: list[_Passed]) -> None:
        """Replace the step's gradients by those at weights up the loss, of the same batches with the same draws."""
        self.methods.run.trail = None
        with sam.climbed(), self.methods.again(), statistics_kept(self.step_module):
            for part in passed:
                _set_dropout_state(part.dropout, part.batch.device)
                self._pass(part.batch, part.divisor, part.whole)

    def _backward(self, loss: Tensor) -> None:
        if self.config.model.grad_checkpointing:
            with statistics_kept(self.network):
                self._differentiate(loss)
        else:
            self._differentiate(loss)

    def _differentiate(self, loss: Tensor) -> None:
        # Accelerate looks for a package on the disk each time, which takes as long as a few small layers.
        if self.accelerator.scaler is None and self.accelerator.distributed_type in _PLAIN:
            loss.backward()
        else:
            self.accelerator.backward(loss)

    def _rescale(self, factor: float, summed: bool) -> None:
        """Multiply the gradients. They are `summed` over processes, as the last part's backward pass does, or not yet:
        then they are averaged, too."""
        ranks = self.methods.run.ranks
        for parameter in self.step_module.parameters():
            if parameter.grad is not None:
                whole = parameter.grad if summed else ranks.mean(parameter.grad)
                parameter.grad = whole * factor

    def _augment(self, batch: Batch) -> float:
        """Let the methods change the batch; returns the seconds that showing a training's first one took."""
        self.guard.part().images(batch)
        self.methods.augment_batch(batch)
        if self.on_augmented is None or not len(batch):
            return 0.0
        drawing = time.perf_counter()
        self.on_augmented(batch)
        self.on_augmented = None
        return time.perf_counter() - drawing

    def _optimise(self) -> None:
        """Change the weights by the step's gradients, unless nothing of the step is to remain."""
        passes = self.guard.passes()
        if passes:
            if self.clip is not None:
                self.clip()
            self.position.tally.lr = _rate(self.optimizer.param_groups[0])
            self.optimizer.step()
        self.optimizer.zero_grad()
        # A scaler of gradients leaves out steps whose gradients are beyond float16.
        self.methods.step(changed=passes and not getattr(self.optimizer, "step_was_skipped", False))
        if passes and self.average is not None:
            self.average.update(self.network, self.methods.run.step)
        self.schedule.step(self.methods.run.step)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs; all processes must ask for it, the first one's is whole."""
        ranks, scaler = self.methods.run.ranks, self.accelerator.scaler
        scalars, tally, sharding = self.methods.run.scalars, self.position.tally, self.sharding
        own: dict[str, Any] = {
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.accelerator.device.type == "cuda" else None,
            "tally": {key: value.cpu() if isinstance(value, Tensor) else value for key, value in vars(tally).items()},
            "scalars": {
                "sums": {name: value.cpu() for name, value in scalars.sums.items()},
                "counts": dict(scalars.counts),
            },
        }
        if ranks.size > 1:
            # BatchNorm's statistics differ from process to process until the epoch ends.
            own["buffers"] = {name: value.cpu() for name, value in self.network.named_buffers()}
        return {
            "format": FORMAT,
            "network": self.network.state_dict() if sharding is None else sharding.weights(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "methods": dict(self.methods.state_dict()),
            "optimizer": self.optimizer.state_dict() if sharding is None else sharding.optimizer_state(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "epoch": self.position.epoch,
            "step": self.position.step,
            "passes": self.position.passes,
            "last_finite": self.guard.last_finite,
            "ranks": ranks.gather_objects(own),
        }

    def restore(self, state: dict[str, Any]) -> list[str]:
        """Go on where `state` was taken.

        Returns:
            what is not exact then, a line each.

        Raises:
            UsageError: a method's state is of another form than the method has here.
        """
        device, ranks = self.accelerator.device, self.methods.run.ranks
        if self.sharding is None:
            self.network.load_state_dict(state["network"])
        else:
            self.sharding.load(state["network"])
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
        if self.sharding is None:
            self.optimizer.load_state_dict(state["optimizer"])
        else:
            self.sharding.load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.methods.run.step:
            self.on_augmented = None  # it was shown when the training began
        before, notes = state["ranks"], []
        if check_format(state.get("format"), "the checkpoint") == 1:
            lr = _rate(self.optimizer.param_groups[0])
            before = [{**own, "tally": from_format_1(own["tally"], lr)} for own in before]
        if len(before) == ranks.size:
            own = before[ranks.rank]
            torch.set_rng_state(own["torch_rng"])
            if own["cuda_rng"] is not None and device.type == "cuda":
                torch.cuda.set_rng_state(own["cuda_rng"])
        else:
            own = shared_out(before, ranks)
            torch.manual_seed(derive(self.config.seed, "torch", self.methods.run.step, ranks.rank))
            notes.append(
                f"begun with {len(before)} process(es), goes on with {ranks.size}: close to what it would have been, "
                "not the same. Draws of methods and of dropout, BatchNorm's statistics and rounding differ from now on."
            )
        buffers = dict(self.network.named_buffers())
        for name, value in own.get("buffers", {}).items():
            buffers[name].copy_(value)
        tally = Tally(**own["tally"])
        tally.loss, tally.correct = tally.loss.to(device), tally.correct.to(device)
        self.position = Position(tally, state["epoch"], state["step"], state["passes"])
        scalars = self.methods.run.scalars
        scalars.sums = {name: value.to(device) for name, value in own["scalars"]["sums"].items()}
        scalars.counts = dict(own["scalars"]["counts"])
        self.guard.last_finite = state.get("last_finite")
        return notes
