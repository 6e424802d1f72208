"""Randomness: a method's draws come from its run's seed, and are nobody else's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import augury
from augury.batch import Batch
from augury.choice import Chosen
from augury.run import Run
from augury_authoring.testing import globals as world
from augury_authoring.testing.bench import Bench, CheckFailed, NotApplicable
from augury_authoring.testing.harness import EPOCH, Facts, Trial, clone, differing, epoch_row, same, tensors_of

STEPS = 4
ADVICE = "Draw from run.generator (tensors, with device=batch.device) and run.random (what Python decides)."


@dataclass
class Seen:
    """What a method made of ordinary batches: fields and loss of each step."""

    fields: list[dict[str, Tensor]]
    losses: list[Tensor]

    def first_difference(self, other: Seen) -> str:
        """Where two differ; "" for nowhere."""
        for step, (one, two) in enumerate(zip(self.fields, other.fields, strict=True)):
            if found := differing(one, two):
                return f"`{found[0]}` of step {step}"
        for step, (a, b) in enumerate(zip(self.losses, other.losses, strict=True)):
            if not same(a, b):
                return f"the loss of step {step}"
        return ""


def _seen(bench: Bench, facts: Facts, *, same_torch: bool = False) -> Seen:
    """Walk without an optimiser. With `same_torch`, torch's generator is alike in `compute_loss` whatever the world:
    dropout in a module of the method's own draws from it, and may."""
    trial, seen = bench.trial(facts), Seen([], [])
    for number in range(STEPS):
        batch = trial.batch(number)
        trial.augment(batch)
        seen.fields.append(tensors_of(batch))
        if len(batch):
            loss = _loss(trial, batch, same_torch=same_torch)
            seen.losses.append(loss.detach())
        trial.methods.step()
    return seen


def _loss(trial: Trial, batch: Batch, *, same_torch: bool) -> Tensor:
    if not same_torch:
        return trial.loss(batch)
    output = augury.forward(trial.network, batch)
    world.seed(trial.facts.world, trial.step_number, "loss")
    torch.default_generator.manual_seed(trial.step_number)
    return trial.methods.compute_loss(batch, output)


def same_seed(bench: Bench) -> None:
    """With one seed everything is the same to the last bit, whatever the global generators hold; augment_batch draws
    nothing from those, and compute_loss nothing but dropout."""
    bench.ready()
    one = _seen(bench, Facts(world="one"), same_torch=True)
    if where := one.first_difference(_seen(bench, Facts(world="other"), same_torch=True)):
        raise CheckFailed(
            f"{bench.name}: with one seed, {where} changes with the global generators of torch, numpy or Python. "
            f"{ADVICE}"
        )
    for hook, call in _calls(bench, dropout=False).items():
        drawn = [kind for kind, what in world.touched(call).items() if what == "draws"]
        if drawn:
            raise CheckFailed(
                f"{bench.name}: {hook} draws from the global generator of {' and '.join(drawn)}, which moves the draws "
                f"of all others. {ADVICE}"
            )


def _calls(bench: Bench, *, dropout: bool) -> dict[str, Callable[[], object]]:
    """Each hook of a step as a call that can be repeated."""
    augmenting, losing = bench.trial(), bench.trial()
    batch = losing.batch()
    losing.augment(batch)
    losing.methods.train(dropout)
    calls: dict[str, Callable[[], object]] = {
        "augment_batch": lambda: augmenting.methods.augment_batch(augmenting.batch(1)),
        "post_epoch": lambda: losing.methods.post_epoch(epoch_row(EPOCH)),
    }
    if len(batch):
        # A pass for each call: methods may differentiate the output, which frees its graph.
        calls["compute_loss"] = lambda: losing.methods.compute_loss(batch, augury.forward(losing.network, batch))
    return calls


def other_seed(bench: Bench) -> None:
    """With another seed the draws are others."""
    bench.ready()
    with world.asked() as names:
        # The global generators follow the seed here: that they are used is for the check above to say.
        found = [_seen(bench, Facts(seed=seed, world=seed)) for seed in range(4)]
    alike = not any(found[0].first_difference(other) for other in found[1:])
    if not alike:
        return
    if _rows_differ(bench):
        raise CheckFailed(
            f"{bench.name}: rows of one and the same image come out different, and the same in four runs of other "
            f"seeds: it draws from a generator of its own. {ADVICE}"
        )
    if bench.name in names and _steps_differ(bench):
        raise CheckFailed(
            f"{bench.name}: what it makes of one batch changes from step to step, and is the same in four runs of "
            f"other seeds. {ADVICE}"
        )
    raise NotApplicable("it makes no draws that show.")


def _rows_differ(bench: Bench) -> bool:
    """Whether augment_batch makes different rows of one image."""
    trial = bench.trial()
    for number in range(STEPS):
        batch = trial.batch(number, alike=True)
        trial.augment(batch)
        for name, value in tensors_of(batch).items():
            views = value.unflatten(0, (batch.views, -1))
            if len(batch) and name != "indices" and not same(views, views[:, :1].expand_as(views).contiguous()):
                return True
        trial.methods.step()
    return False


def _steps_differ(bench: Bench) -> bool:
    """Whether augment_batch makes different things of one batch in different steps, for another reason than a schedule:
    state, and what `run` tells of the progress, are alike in all of them, and draws alone go on."""
    trial, found = bench.trial(), []
    state = clone(trial.methods.state_dict())
    with _told_step(0):
        for number in range(STEPS):
            trial.methods.load_state_dict(clone(state))
            trial.methods.run.step = number
            batch = trial.batch(0)
            trial.augment(batch)
            found.append(tensors_of(batch))
    return any(differing(found[0], other) for other in found[1:])


@contextlib.contextmanager
def _told_step(number: int) -> Iterator[None]:
    """While this is open, every method is told that step, and its epoch and progress; draws follow the true one."""
    own: property = vars(Run)["step"]
    setattr(Run, "step", property(lambda _: number))  # noqa: B010
    try:
        yield
    finally:
        setattr(Run, "step", own)  # noqa: B010


class Probe(augury.Method):
    """A method that only draws, and remembers what, by step and hook."""

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.drawn: dict[str, list[float]] = {}

    def _draw(self, run: Run, hook: str) -> None:
        drawn = torch.rand(2, generator=run.generator, device=run.device).tolist()
        self.drawn[f"{hook} of step {run.step}"] = [*drawn, run.random.random()]

    @augury.hookimpl
    def augment_batch(self, run: Run) -> None:
        """Draw."""
        self._draw(run, "augment_batch")

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, run: Run) -> Generator[None, Tensor, Tensor]:
        """Draw."""
        self._draw(run, "compute_loss")
        return (yield)


PROBE = Chosen("probe", Probe, Probe.Options())


def others_draws(bench: Bench) -> None:
    """Another method draws the same with it as without it, before it and behind it, and no hook reseeds a global
    generator."""
    bench.ready()
    alone = _drawn(Trial([PROBE]))
    for place, trial in (("before", bench.trial(after=[PROBE])), ("behind", bench.trial(before=[PROBE]))):
        for when, drawn in _drawn(trial).items():
            if drawn != alone[when]:
                raise CheckFailed(
                    f"{bench.name}: named {place} another method, it changes what that one draws in {when}. {ADVICE}"
                )
    calls = _calls(bench, dropout=True)
    if bench.has_stage:
        calls["pre_train_stage"] = bench.before_stage().methods.pre_train_stage
    for hook, call in calls.items():
        seeded = [kind for kind, what in world.touched(call).items() if what == "reseeds"]
        if seeded:
            raise CheckFailed(
                f"{bench.name}: {hook} reseeds the global generator of {' and '.join(seeded)}, and with it the draws "
                f"of all others (dropout, say). {ADVICE}"
            )


def _drawn(trial: Trial) -> dict[str, list[float]]:
    """What the probe draws in some steps."""
    for number in range(STEPS):
        batch = trial.batch(number)
        trial.augment(batch)
        if len(batch):
            trial.loss(batch)
        trial.methods.step()
    probe = trial.methods["probe"]
    assert isinstance(probe, Probe)
    return probe.drawn
