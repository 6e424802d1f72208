"""The learning rate of every step, for each schedule, against its formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from augury_train.config import ScheduleConfig
from augury_train.training.optimisation import Schedule

LR, LOW, START = 0.2, 0.004, 0.01
EPOCHS, STEPS, WARM = 12, 7, 3


def rates(epochs: int = EPOCHS, steps: int = STEPS, **settings: Any) -> list[float]:
    """The rate at which each step of a training is made."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
    schedule, found = Schedule(ScheduleConfig(**settings), optimizer, epochs, steps), []
    for step in range(epochs * steps):
        found.append(optimizer.param_groups[0]["lr"])
        schedule.step(step + 1)
        if (step + 1) % steps == 0:
            schedule.epoch((step + 1) // steps, 50.0 + step)
    return found


def curve(
    shape: Callable[[float, float], float], every: str, *, warm: int = 0, prefix: bool = True, length: int = EPOCHS
) -> list[float]:
    """What `rates` is to find.

    Args:
        shape: (epochs since the curve began, epochs that it spans) -> the rate.
        every: `step`, or `epoch` for a rate that only changes between epochs.
        warm: epochs of a straight rise from `START` to `LR`.
        prefix: whether the curve begins after the rise, else with the training.
        length: epoch in which the curve ends.
    """
    found = []
    for step in range(EPOCHS * STEPS):
        t = step / STEPS if every == "step" else float(step // STEPS)
        before = warm if prefix else 0
        found.append(START + (LR - START) * t / warm if t < warm else shape(t - before, length - before))
    return found


def cosine(t: float, span: float) -> float:
    return LOW + (LR - LOW) * (1 + math.cos(math.pi * t / span)) / 2


def tanh(t: float, span: float) -> float:
    return LOW + (LR - LOW) * (1 - math.tanh(-7 * (1 - t / span) + 3 * t / span)) / 2


def poly(power: float) -> Callable[[float, float], float]:
    return lambda t, span: LOW + (LR - LOW) * (1 - t / span) ** power


def decaying(every_epochs: float, rate: float) -> Callable[[float, float], float]:
    # A hair more, since a quotient of steps may fall below its whole number.
    return lambda t, span: LR * rate ** math.floor(t / every_epochs + 1e-9)


def wsd(t: float, span: float) -> float:
    """Constant, then 1 - sqrt over the last three epochs."""
    return LOW + (LR - LOW) * (1 - math.sqrt(max(0.0, (t - (span - 3)) / 3)))


def rsqrt(t: float, span: float) -> float:
    """The inverse square root, in warm-ups, then a straight line over the last three epochs."""
    stable = max(LR / math.sqrt(1 + t / WARM), LOW)
    return LOW + (stable - LOW) * (1 - max(0.0, (t - (span - 3)) / 3))


SPANNING = {
    "cosine": ({}, cosine),
    "tanh": ({}, tanh),
    "poly": ({"decay_rate": 0.9}, poly(0.9)),
    "linear": ({"name": "poly", "decay_rate": 1.0}, poly(1.0)),
    "step": ({"decay_epochs": 4, "decay_rate": 0.3}, decaying(4, 0.3)),
    "exponential": ({"name": "step", "decay_epochs": 1, "decay_rate": 0.97}, decaying(1, 0.97)),
}
"""Settings and shape of each schedule that spans the epochs after the warm-up."""


def settings_of(name: str, every: str) -> dict[str, Any]:
    return {"name": name, "every": every, "min_lr": LOW} | SPANNING[name][0]


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", SPANNING)
def test_a_curve_without_warm_up_spans_the_training(name: str, every: str) -> None:
    assert rates(**settings_of(name, every)) == pytest.approx(curve(SPANNING[name][1], every), rel=1e-12)


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", SPANNING)
def test_the_warm_up_reaches_the_rate_that_was_set_and_the_curve_spans_the_rest(name: str, every: str) -> None:
    found = rates(**settings_of(name, every), warmup_epochs=WARM, warmup_lr=START)
    assert found == pytest.approx(curve(SPANNING[name][1], every, warm=WARM), rel=1e-12)
    assert max(found) == pytest.approx(LR, rel=1e-5)
    assert found.index(max(found)) == WARM * STEPS, "at the first step after the warm-up"


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", SPANNING)
def test_without_a_prefix_the_curve_begins_with_the_training(name: str, every: str) -> None:
    found = rates(**settings_of(name, every), warmup_epochs=WARM, warmup_lr=START, warmup_prefix=False)
    wanted = curve(SPANNING[name][1], every, warm=WARM, prefix=False)
    if name == "tanh":
        # timm's tanh rises to the curve, not above it.
        top = tanh(WARM, EPOCHS)
        wanted[: WARM * STEPS] = [START + (r - START) * (top - START) / (LR - START) for r in wanted[: WARM * STEPS]]
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ["wsd", "rsqrt"])
def test_wsd_and_rsqrt_begin_after_the_warm_up(name: str, prefix: bool, every: str) -> None:
    shape = {"wsd": wsd, "rsqrt": rsqrt}[name]
    found = rates(
        name=name,
        every=every,
        decay_epochs=3,
        min_lr=LOW,
        warmup_epochs=WARM,
        warmup_lr=START,
        warmup_prefix=prefix,
    )
    assert found == pytest.approx(curve(shape, every, warm=WARM), rel=1e-12)


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("prefix", [True, False])
def test_milestones_are_epochs_of_the_training(prefix: bool, every: str) -> None:
    found = rates(
        name="multistep",
        every=every,
        milestones=[9, 5],
        decay_rate=0.2,
        warmup_epochs=WARM,
        warmup_lr=START,
        warmup_prefix=prefix,
    )

    def shape(t: float, span: float) -> float:
        return LR * 0.2 ** ((t >= 5) + (t >= 9))

    assert found == pytest.approx(curve(shape, every, warm=WARM, prefix=False), rel=1e-12)


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("name", ["none", "constant", "plateau"])
def test_a_rate_that_does_not_fall_by_itself_stays_after_the_warm_up(name: str, every: str) -> None:
    found = rates(name=name, every=every, warmup_epochs=WARM, warmup_lr=START)
    by = "epoch" if name == "plateau" else every
    assert found == pytest.approx(curve(lambda t, span: LR, by, warm=WARM), rel=1e-12)
    assert rates(name=name, every=every) == [LR] * (EPOCHS * STEPS)


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("name", ["cosine", "tanh", "poly", "linear"])
def test_a_curve_may_end_after_the_training(name: str, prefix: bool, every: str) -> None:
    found = rates(
        **settings_of(name, every), warmup_epochs=WARM, warmup_lr=START, warmup_prefix=prefix, length=EPOCHS + 5
    )
    wanted = curve(SPANNING[name][1], every, warm=WARM, prefix=prefix, length=EPOCHS + 5)
    after = slice(WARM * STEPS, None)
    assert found[after] == pytest.approx(wanted[after], rel=1e-12)
    assert found[-1] > 2 * LOW, "it is cut before it has come down"


def test_agmaxs_cosine_is_cut_as_in_the_official_program() -> None:
    settings = {"warmup_epochs": 5, "warmup_lr": 1e-5, "every": "epoch", "length": 105}
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule, by_epoch = Schedule(ScheduleConfig(**settings), optimizer, 100, 1), []
    for epoch in range(100):
        by_epoch.append(optimizer.param_groups[0]["lr"])
        schedule.epoch(epoch + 1, None)
    assert by_epoch[5] == pytest.approx(0.1)
    assert by_epoch[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 0.94)))
    assert by_epoch[-1] == pytest.approx(8.9e-4, abs=5e-6)
