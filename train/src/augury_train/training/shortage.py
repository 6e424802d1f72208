"""Memory that runs out: told with what takes it, or answered by passing fewer images at once."""

from __future__ import annotations

import dataclasses
import gc
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from augury.errors import AuguryError, UsageError
from augury_train.training.checkpoint import checkpoints
from augury_train.training.loop import Loop
from augury_train.training.plan import Plan
from augury_train.training.result import Result

if TYPE_CHECKING:
    from augury_train.training.trainer import Trainer

_SIGNS = (
    "can't allocate memory",
    "Cannot allocate memory",
    "out of memory",
    "not enough memory",
    "std::bad_alloc",
    "ALLOC_FAILED",
)
"""What torch's errors say that have no class of their own."""


@dataclass(frozen=True)
class Shortage:
    """Where a run ran out of memory.

    Attributes:
        where: which training and which of its steps; "" where it was in no step.
        device: whose memory.
        said: torch's words.
        batch_norm: whether the network normalises by the statistics of a batch.
        notes: what the run had told until then.
    """

    where: str
    device: str
    said: str
    batch_norm: bool
    notes: tuple[str, ...]


def ran_out(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out: a GPU's, or the machine's."""
    return any(
        isinstance(cause, torch.OutOfMemoryError | MemoryError)
        or (isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _SIGNS))
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def within_memory(
    build: Callable[[Plan], Trainer], plan: Plan, folder: Path, *, resume: bool = False, halved: tuple[str, ...] = ()
) -> Result:
    """Carry out a run; where memory runs out and `train.auto_batch` says so, go on from the last checkpoint with half
    the images at once.

    Args:
        build: makes the trainer of a plan.
        plan: what to run.
        folder, resume: as for `Trainer.run`.
        halved: a line for each time that this happened in an earlier sitting.

    Raises:
        AuguryError: memory ran out, and nothing can be done about it here.
        UsageError: `train.auto_batch` with several processes.
    """
    notes: tuple[str, ...] = halved
    while True:
        found = _attempt(build, plan, folder, resume, notes, halved)
        if isinstance(found, Result):
            return found
        # What held its tensors is gone, but for what refers to itself.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        plan, line = _with_half(plan, found, folder)
        halved, notes, resume = (*halved, line), found.notes, True


def _attempt(
    build: Callable[[Plan], Trainer],
    plan: Plan,
    folder: Path,
    resume: bool,
    notes: tuple[str, ...],
    halved: tuple[str, ...],
) -> Result | Shortage:
    trainer = None
    try:
        trainer = build(plan)
        if plan.config.train.auto_batch and trainer.ranks.size > 1:
            raise UsageError(
                f"train.auto_batch goes with one process, and there are {trainer.ranks.size}: one of them alone may "
                "run out of memory. Say in how many parts a step passes: --set optim.accumulation=2."
            )
        trainer.notes[:0] = notes
        if halved and halved[-1] not in notes:
            trainer.note(halved[-1])
        trainer.halved = halved
        return trainer.run(folder, resume=resume)
    except Exception as error:
        if not ran_out(error):
            raise
        return _shortage(error, plan, trainer)


def _shortage(error: Exception, plan: Plan, trainer: Trainer | None) -> Shortage:
    where = ""
    # A method's error has the frames of its own call alone; the rest are its cause's.
    for frame, _ in (place for cause in _causes(error) for place in traceback.walk_tb(cause.__traceback__)):
        loop = frame.f_locals.get("self")
        if frame.f_code is Loop._step.__code__ and isinstance(loop, Loop):
            where = f"{loop.guard.what}: step {loop.methods.run.step + 1}"
    device = torch.device("cpu") if trainer is None else trainer.accelerator.device
    # Whichever it was raised from is torch's own.
    first = [*_causes(error)][-1]
    return Shortage(
        where=where,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine",
        said=_torchs_words(first),
        batch_norm=trainer is not None and any(isinstance(module, _BatchNorm) for module in trainer.network.modules()),
        notes=() if trainer is None else tuple(trainer.notes),
    )


def _torchs_words(error: BaseException) -> str:
    """Torch's words without those about itself."""
    line = str(error).strip().partition("\n")[0]
    words = re.sub(r"^\[enforce fail[^]]*\][^:]*: |\. GPU .*| Error code.*", "", line)
    return words.rstrip(".") or type(error).__name__


def _with_half(plan: Plan, shortage: Shortage, folder: Path) -> tuple[Plan, str]:
    """The plan with half the images at once, and what to say of it.

    Raises:
        AuguryError: that is not wanted, or cannot be.
    """
    optim, where = plan.config.optim, shortage.where or "training: outside of its steps"
    views = max((c.cls.views for c in plan.chosen), default=1)
    here = optim.batch_size // optim.accumulation
    rows = f" of {views} views, {here * views} rows" if views > 1 else ""
    said = (
        f"{where}: the memory of {shortage.device} ran out with {here} images at once{rows} (optim.batch_size="
        f"{optim.batch_size}, optim.accumulation={optim.accumulation}): {shortage.said}."
    )
    parts = 2 * optim.accumulation
    if not shortage.where:
        raise AuguryError(
            f"{said}\nNo smaller batch helps there. Choose a smaller model, smaller images (data.image_size), or "
            "data.loader=stream, which does not keep all images in memory."
        )
    if why := _no_half(plan, views):
        raise AuguryError(f"{said}\n{why} Choose a smaller model, or smaller images (data.image_size).")
    if not plan.config.train.auto_batch:
        raise AuguryError(
            f"{said}\nStart anew with --set optim.accumulation={parts}, which passes a batch in {parts} parts, or with "
            f"--auto-batch, which finds how many it takes. Where there is more memory: augury resume {folder}"
        )
    config = plan.config.model_copy(update={"optim": optim.model_copy(update={"accumulation": parts})})
    if checkpoints(folder):
        # The weights that the run began with may be gone, and are not needed.
        plan = plan.from_scratch()
        config = config.model_copy(update={"model": plan.config.model})
    line = (
        f"{where}: memory ran out with {here} images at once; from the last checkpoint on {here // 2} pass at once, "
        f"optim.accumulation={parts} (train.auto_batch). {_differences(plan, shortage, here // 2)}"
    )
    # What is to be told of the plan was told.
    return dataclasses.replace(plan, config=config, notes=()), line


def _no_half(plan: Plan, views: int) -> str:
    """Why no fewer images can pass at once; "" where they can."""
    optim, parts = plan.config.optim, 2 * plan.config.optim.accumulation
    if optim.batch_size % parts:
        here = optim.batch_size // optim.accumulation
        return f"optim.batch_size={optim.batch_size} cannot be halved further: {here} image(s) are no even number."
    rows = optim.batch_size // parts * views
    for c in plan.chosen:
        if rows < c.cls.min_rows:
            return f"It cannot be halved further: {c.name} needs at least {c.cls.min_rows} rows."
    return ""


def _differences(plan: Plan, shortage: Shortage, here: int) -> str:
    """What is otherwise in this run than with whole batches."""
    found = []
    if shortage.batch_norm:
        found.append(f"BatchNorm's statistics are those of {here} images")
    for c in plan.chosen:
        if c.cls.mixes or c.cls.mixes_hidden:
            found.append(f"{c.name}: what is mixed are images of one part")
        if c.cls.batchwise:
            found.append(f"{c.name}: {c.cls.batchwise}")
    if any(
        (asked := c.cls.pipelines(c.options)) and sum(share > 0 for share in asked.values()) > 1 for c in plan.chosen
    ):
        found.append("the pipelines' shares are rounded to whole rows of a part")
    return f"What differs from whole batches: {'; '.join([*found, 'rounding, and draws of dropout and of methods'])}."
