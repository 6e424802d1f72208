"""What the checks of one method share: the method made ready, and one ordinary walk of it through a few steps."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import Tensor

import augury
import augury_authoring
import augury_train
from augury.choice import Chosen
from augury.errors import MethodError, UsageError
from augury.method import Method, check_method, hook_implementations
from augury.run import Host
from augury_authoring.testing import globals as world
from augury_authoring.testing import runs
from augury_authoring.testing.candidate import Candidate
from augury_authoring.testing.faults import Fault, Watch, loss_faults
from augury_authoring.testing.harness import EPOCH, STEPS, Facts, Trial, gradients, with_state_of

ORDINARY = Facts()
NOT_ITS = [
    Path(module.__file__).parent
    for module in (augury, augury_authoring, augury_train, pluggy, torch)
    if module.__file__
]
"""Whose lines of a traceback say nothing to whoever wrote a method."""


class CheckFailed(Exception):
    """The method did not pass a check; the message says what was found and where to look."""


class NotApplicable(Exception):
    """There is nothing to check, or another check must pass first; the message says which."""


@dataclass
class Walk:
    """What was seen in a few steps.

    Attributes:
        faults: of batches and losses.
        losses: of the steps that trained on something.
        reached: the parameters, by name, that had a gradient other than 0 in some step.
        broken: those that had one which is not finite.
        differentiable: whether a loss had a gradient.
        error: what was raised, None where nothing was.
    """

    faults: list[Fault] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    differentiable: bool = False
    error: Exception | None = None

    @property
    def leaves_gradients(self) -> bool:
        """Whether a hook left gradients behind."""
        return any(fault.kind == "gradient left" for fault in self.faults)

    @property
    def misshapen(self) -> bool:
        """Whether a batch came out that nothing can go on with."""
        return any(fault.kind.startswith("shape") for fault in self.faults)

    def add(self, faults: Iterable[Fault]) -> None:
        """Keep the first fault of each kind."""
        known = {fault.kind for fault in self.faults}
        for fault in faults:
            if fault.kind not in known:
                known.add(fault.kind)
                self.faults.append(fault)


@dataclass(frozen=True)
class RealRun:
    """Outcome of a run in augury's own loop: what it raised, "" for nothing, and its result."""

    raised: str
    trained: runs.Trained | None = None

    @property
    def faults(self) -> list[Fault]:
        """Return the faults of batches and losses."""
        return [] if self.trained is None else self.trained.faults


class Bench:
    """A method under test.

    Attributes:
        candidate: it.
        name: what it is called.
        installed: whether a package offers it.
        has_stage: whether it implements `pre_train_stage`.
        images: in a batch, so that it has the rows that the method needs.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, self.name, self.cls = candidate, candidate.name, candidate.cls
        self.installed = candidate.installed
        self.has_stage = "pre_train_stage" in hook_implementations(candidate.cls)
        self._made: dict[int, Method] = {}
        self._verdicts: dict[Callable[..., None], tuple[str, str]] = {}
        self.trained: dict[tuple[str, ...], RealRun] = {}
        """Short real runs, by the methods in them."""

    @cached_property
    def images(self) -> int:
        """In a batch: as many as give the method the rows it needs."""
        return Trial([self.candidate.chosen]).images

    def before_stage(self, channels: int = 3, start: int = 0) -> Trial:
        """A trial whose pre-train stage is still to come."""
        host = runs.host(channels, self.images)
        return Trial([self.candidate.chosen], Facts(channels=channels, world=start), host=host)

    def after_stage(self, channels: int = 3, start: int = 0) -> Method:
        """The method as its own pre-train stage has just left it."""
        trial = self.before_stage(channels, start)
        trial.methods.pre_train_stage()
        return trial.methods[self.name]

    def host(self, channels: int = 3) -> Host | None:
        """What it may borrow data from, where it has hooks that could."""
        lent = {"pre_train_stage", "post_step", "post_epoch"} & hook_implementations(self.cls).keys()
        return runs.host(channels, self.images) if lent else None

    def chosen(self, facts: Facts = ORDINARY) -> Chosen:
        """The method as a trial takes it: with what its stage made, if it has one."""
        if not self.has_stage:
            return self.candidate.chosen
        if facts.channels not in self._made:
            self._made[facts.channels] = self.after_stage(facts.channels)
        return with_state_of(self._made[facts.channels], self.candidate.chosen, facts)

    def trial(self, facts: Facts = ORDINARY, before: Sequence[Chosen] = (), after: Sequence[Chosen] = ()) -> Trial:
        """A training by hand with the method, its stage behind it, and perhaps others around it."""
        return Trial([*before, self.chosen(facts), *after], facts, host=self.host(facts.channels))

    def walk(self, facts: Facts = ORDINARY, sizes: Sequence[int] = ()) -> Walk:
        """Train for some steps and look at everything on the way.

        Args:
            facts: what the training is like.
            sizes: images of each step's batch; a whole training of ordinary ones when empty.
        """
        walk = Walk()
        try:
            trial = self.trial(facts)
            for images in sizes or [trial.images] * STEPS:
                self._step(trial, walk, images)
                if walk.misshapen:
                    break
                # What the host lends is on the CPU.
                if trial.step_number % EPOCH == 0 and facts.device == "cpu":
                    trial.end_epoch()
        except Exception as error:
            walk.error = error
        return walk

    def _step(self, trial: Trial, walk: Walk, images: int) -> None:
        batch = trial.batch(images=images)
        watch = Watch(batch, trial.methods.run.spec.num_classes, self.cls)
        trial.augment(batch)
        walk.add(watch.faults(batch))
        walk.add(self._left("augment_batch", trial))
        if walk.misshapen:
            return
        loss = trial.loss(batch) if len(batch) else None
        if loss is not None:
            walk.add(self._left("compute_loss", trial))
            walk.add(loss_faults(loss, trial.facts.device))
            if isinstance(loss, Tensor):
                walk.losses.append(loss.detach())
        walk.differentiable |= isinstance(loss, Tensor) and loss.requires_grad
        trial.descend(loss, lambda: self._note(walk, trial))

    def _left(self, hook: str, trial: Trial) -> list[Fault]:
        """The gradients that a hook leaves behind: before the loss's own there are none."""
        left = next(iter(self.own_gradients(trial)), None)
        if left is None:
            return []
        return [
            Fault(
                "gradient left",
                f"{hook} leaves a gradient in `{left}`, which the optimiser's step adds to the loss's. Differentiate "
                "with torch.autograd.grad(...), which leaves none, or set .grad to None again.",
            )
        ]

    def _note(self, walk: Walk, trial: Trial) -> None:
        for name, gradient in self.own_gradients(trial).items():
            (walk.reached if gradient.any() else set()).add(name)
            (set() if gradient.isfinite().all() else walk.broken).add(name)

    def own_gradients(self, trial: Trial) -> dict[str, Tensor]:
        """The gradients of the network and of this method, by name."""
        network = {f"network.{name}": value for name, value in gradients(trial.network).items()}
        return network | {f"{self.name}.{n}": value for n, value in gradients(trial.methods[self.name]).items()}

    @cached_property
    def ordinary(self) -> Walk:
        """The walk in which nothing is special."""
        return self.walk()

    @cached_property
    def hook_faults(self) -> str:
        """What `check_method` says against the class; "" for nothing."""
        try:
            check_method(self.cls, self.name)
        except UsageError as error:
            return str(error)
        return ""

    @cached_property
    def stage_error(self) -> Exception | None:
        """What the pre-train stage raised, alone on ordinary images."""
        try:
            self.chosen()
        except Exception as error:
            return error
        return None

    def verdict(self, check: Callable[..., None], *arguments: Any) -> tuple[str, str]:
        """Why a check fails, and why there is nothing to check; "" and "" where it passes. One without arguments is
        made once."""
        if not arguments and check in self._verdicts:
            return self._verdicts[check]
        failed = skipped = ""
        with world.kept():
            try:
                check(self, *arguments)
            except NotApplicable as reason:
                skipped = str(reason)
            except CheckFailed as reason:
                failed = str(reason)
            except Exception as error:
                failed = f"{self.name}: {told(error).removeprefix(f'{self.name}: ')}"
        self._verdicts[check] = failed, skipped
        return failed, skipped

    def ready(self, *, shaped: bool = True, gradient: bool = False) -> None:
        """Skip a check that can say nothing before another has passed.

        Args:
            shaped: whether it needs batches in shape.
            gradient: whether it needs a loss with a gradient.
        """
        if self.hook_faults:
            raise NotApplicable("its hooks cannot be called; see test_hooks_and_declarations.")
        if self.stage_error is not None:
            raise NotApplicable("its pre-train stage fails; see test_pre_train_stage.")
        if self.ordinary.error is not None:
            raise NotApplicable("it fails in an ordinary step; see test_a_step_works.")
        if shaped and self.ordinary.misshapen:
            raise NotApplicable("its batches come out of shape; see test_batch_keeps_its_form.")
        if gradient and not self.ordinary.differentiable:
            raise NotApplicable("its loss has no gradient; see test_gradients_arrive.")

    def new_faults(self, walk: Walk) -> list[Fault]:
        """The faults that the ordinary walk does not have: what it has, another check tells."""
        known = {fault.kind for fault in self.ordinary.faults}
        return [fault for fault in walk.faults if fault.kind not in known]

    def expect(self, walk: Walk, where: str, advice: str = "") -> None:
        """Fail where a walk raised, or shows faults that the ordinary one does not."""
        if walk.error is not None:
            raise CheckFailed(f"{where}: {told(walk.error)}" + (f"\n{advice}" if advice else ""))
        if faults := self.new_faults(walk):
            lines = "\n".join(fault.text for fault in faults)
            raise CheckFailed(f"{where}: {lines}" + (f"\n{advice}" if advice else ""))


def told(error: BaseException) -> str:
    """An exception for whoever wrote the method: what it says, and the lines of its own code that led to it."""
    text = str(error) if isinstance(error, MethodError | UsageError) else f"{type(error).__name__}: {error}"
    cause: Any = error.__cause__ or error
    frames = [
        f for f in traceback.extract_tb(cause.__traceback__) if not any(map(Path(f.filename).is_relative_to, NOT_ITS))
    ]
    lines = [f"  {frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames[-4:]]
    return "\n".join([text, *lines])


def attempt(call: Callable[[], Any], where: str) -> Any:
    """What a call returns; a failed check where it raises."""
    try:
        return call()
    except (CheckFailed, NotApplicable):
        raise
    except Exception as error:
        raise CheckFailed(f"{where}: {told(error)}") from error
