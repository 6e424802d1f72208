"""Steps whose loss or gradients are not finite: found in every step, told with whose they are, stopped at or undone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from augury.batch import Batch
from augury.distributed import Ranks
from augury.errors import AuguryError
from augury.method import CRITERION
from augury_train.training.blame import Place, first_broken, first_broken_gradient, whose_gradient, with_weights
from augury_train.training.trail import Trail, norms_of
from augury_train.training.undo import Undo

if TYPE_CHECKING:
    from augury_train.training.loop import Loop


class NotFinite(AuguryError):
    """The loss or the gradients of a step were not finite; nothing of the step was kept."""


@dataclass
class Found:
    """What a step's loss and gradients came to.

    Attributes:
        step, epoch: which one, from 1.
        values: the mean loss of its parts, and the norm of its gradients (2), float64 on the device.
        norms: the norm of each parameter's gradient, P float64; None where a gradient scaler looks at them.
        names: of those parameters.
        trails: of its parts.
        batches: its parts as the methods left them, where they are kept.
    """

    step: int
    epoch: int
    values: Tensor
    norms: Tensor | None
    names: Sequence[str]
    trails: Sequence[Trail]
    batches: Sequence[tuple[Batch, Trail]] = ()


class Guard:
    """Watches every optimiser step of one training.

    On the CPU, and where a step may have to be undone, what it came to is known before the weights change. Else the GPU
    is not waited for: its numbers arrive while the next step is under way, and nothing is saved before (`settle`).

    Attributes:
        what: what messages call the training.
        last_finite: the last finite step, from 1, its loss and the norm of its gradients; None before the first.
    """

    def __init__(self, loop: Loop, what: str = "training") -> None:
        """Watch the steps of `loop`, which messages call `what`."""
        self._loop, self.what = loop, what
        self._skip = loop.config.train.on_nan == "skip"
        on_gpu = loop.accelerator.device.type == "cuda"
        self._at_once = self._skip or not on_gpu
        # On a GPU memory is scarce, and weights have changed before a step is known to be bad.
        self._keeps = not on_gpu
        self._undo: Undo | None = None
        self._named: list[tuple[str, nn.Parameter]] = []
        self._losses: list[Tensor] = []
        self._trails: list[Trail] = []
        self._batches: list[tuple[Batch, Trail]] = []
        self.last_finite: tuple[int, float, float] | None = None
        self._pending: Found | None = None
        self._told = self._told_large = False
        if not self._at_once:
            self._arriving = torch.empty(2, dtype=torch.float64, pin_memory=True)
            self._arrived = torch.cuda.Event()

    def begin(self) -> None:
        """A step begins."""
        self._losses, self._trails, self._batches = [], [], []
        if self._skip:
            tally = self._loop.position.tally
            tally.skipped = tally.skipped or 0
            if self._undo is None:
                self._undo = Undo(self._loop.network, self._loop.methods)
            self._undo.take(tally)

    def part(self) -> Trail:
        """A part of the step begins; returns what marks its way."""
        trail = Trail(keep_output=self._keeps)
        self._loop.methods.run.trail = trail
        self._trails.append(trail)
        return trail

    def loss(self, loss: Tensor, batch: Batch) -> None:
        """The part's loss."""
        self._losses.append(loss.detach())
        if not self._trails[-1].has_loss:
            self._trails[-1].loss(CRITERION, loss)
        if self._keeps:
            self._batches.append((batch, self._trails[-1]))

    def passes(self) -> bool:
        """Whether the weights may change by this step's gradients, which are all there; False when nothing of it
        remains.

        Raises:
            NotFinite: this step, or the one before, is not finite and the run is to stop there.
        """
        found = self._measure()
        self._trails, self._batches, self._losses = [], [], []
        self._loop.methods.run.trail = None
        if self._at_once:
            loss, norm = found.values.tolist()
            return self._judge(found, loss, norm, before_the_step=True)
        self.settle()
        self._arriving.copy_(found.values, non_blocking=True)
        self._arrived.record()
        self._pending = found
        return True

    def settle(self) -> None:
        """Wait for what is not known yet of the last step.

        Raises:
            NotFinite: it is not finite.
        """
        if self._pending is not None:
            found, self._pending = self._pending, None
            self._arrived.synchronize()
            loss, norm = self._arriving.tolist()
            self._judge(found, loss, norm, before_the_step=False)

    @torch.no_grad()
    def _measure(self) -> Found:
        run, position = self._loop.methods.run, self._loop.position
        # In float64, whose sums and squares of finite numbers are finite.
        loss = torch.stack(self._losses).double().mean()
        names: list[str] = []
        norms = None
        norm = torch.zeros_like(loss)
        # With a scaler the gradients are scaled, and steps with bad ones are its business.
        if not self._named:
            self._named = list(self._loop.step_module.named_parameters())
        if self._loop.accelerator.scaler is None:
            held = [(name, p.grad) for name, p in self._named if p.grad is not None]
            if held:
                names = [name for name, _ in held]
                norms = torch.stack(norms_of([_here(g) for _, g in held])).double()
                norm = _whole_norm(norms, [hasattr(g, "to_local") for _, g in held], run.ranks)
        values = run.ranks.mean(torch.stack([loss, norm]))
        return Found(run.step + 1, position.epoch + 1, values, norms, names, self._trails, self._batches)

    def _judge(self, found: Found, loss: float, norm: float, *, before_the_step: bool) -> bool:
        if _finite(loss) and _finite(norm):
            self.last_finite = found.step, loss, norm
            self._tell_large(found.step, norm)
            return True
        if not self._skip:
            raise NotFinite(self._message(found, loss, norm, before_the_step))
        if not self._told:
            self._told = True
            place = self._place(found, loss, before_the_step)
            self._loop.reporter.note(
                f"{self.what}: step {found.step} is skipped, its {_what(loss)} is not finite. {place.said} The rows of "
                "epochs count such steps; further ones are not told."
            )
        self._forget()
        return False

    def _tell_large(self, step: int, norm: float) -> None:
        """Say once that the square of a norm is beyond float32, though no gradient is: many optimisers take it."""
        if norm * norm <= torch.finfo(torch.float32).max or self._told_large:
            return
        self._told_large = True
        optim = self._loop.config.optim
        clipped = ", and optim.clip makes 0 of them" if optim.clip is not None and optim.clip_mode == "norm" else ""
        self._loop.reporter.note(
            f"{self.what}: the norm of the gradients in step {step} is {norm:.4g}, its square beyond float32. All of "
            f"them are finite: the step is applied{clipped}. Further ones are not told."
        )

    def _forget(self) -> None:
        """Put everything back to where the step began, but what it cost."""
        position, ranks = self._loop.position, self._loop.methods.run.ranks
        assert self._undo is not None
        rows = position.tally.rows
        self._undo.restore(position.tally)
        position.passes += self._loop.times * (rows - position.tally.rows) * ranks.size
        position.tally.skipped = (position.tally.skipped or 0) + 1

    def _message(self, found: Found, loss: float, norm: float, before_the_step: bool) -> str:
        place = self._place(found, loss, before_the_step)
        value = f" ({loss})" if not _finite(loss) else ""
        if self.last_finite is None:
            last = "No step was finite before."
        else:
            step, finite_loss, finite_norm = self.last_finite
            last = f"Last finite: loss {finite_loss:.4g}, gradient norm {finite_norm:.4g}, in step {step}."
        precision = self._loop.accelerator.mixed_precision
        wider = "" if precision == "no" else " or compute with --set train.precision=fp32,"
        wider += "" if self._loop.sam is None else " lower optim.sam,"
        return (
            f"{self.what}: the {_what(loss)} is no longer finite{value} in epoch {found.epoch}, step {found.step}. "
            f"{place.said} {last}\n{place.remedy}Lower optim.lr, to a third say, raise schedule.warmup_epochs,{wider} "
            "or bound the gradients with --set optim.clip=1. To leave such steps out: --on-nan skip."
        )

    def _place(self, found: Found, loss: float, before_the_step: bool) -> Place:
        """Where it began, in whichever process."""
        ranks, methods = self._loop.methods.run.ranks, self._loop.methods
        # What a finite loss came of has done no harm.
        place = None if _finite(loss) else first_broken(found.trails)
        if place is not None and place.after_weights and before_the_step:
            # Of spread weights each process looks at its share: not all of them come here.
            place = with_weights(place, [(name, _here(p.detach())) for name, p in self._named])
        if place is None and _finite(loss):
            alone = ranks.size == 1 and before_the_step
            place = whose_gradient(methods, found.batches) if alone else None
            place = first_broken_gradient(found.names, found.norms, place)
        places = ranks.gather_objects(place)
        for rank, told in enumerate(places):
            if told is not None:
                return told.in_process(rank) if ranks.size > 1 else told
        return Place("Nothing that was looked at says where it begins.")


def _what(loss: float) -> str:
    return "gradient" if _finite(loss) else "loss"


def _finite(value: float) -> bool:
    return value - value == 0


def _whole_norm(norms: Tensor, spread: list[bool], ranks: Ranks) -> Tensor:
    """The norm of all gradients; those of spread weights are known here as this process's share alone."""
    if not any(spread):
        return torch.linalg.vector_norm(norms)
    shares = norms.new_tensor([ranks.size if one else 1 for one in spread])
    return ranks.mean((norms.square() * shares).sum()).sqrt()


def _here(tensor: Tensor) -> Tensor:
    """This process's part of a gradient, or of a weight, that several share."""
    local = getattr(tensor, "to_local", None)
    return tensor if local is None else local()
