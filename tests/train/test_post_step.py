"""The hook behind the optimiser's step: when it is called, what it may change, and that its draws resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.breaking import Breaks
from tests.train.small_runs import Plain, StopsAfter, assert_same_run, small
from torch import Tensor

import augury
from augury.registry import Register
from augury_train.config import RunConfig
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer
from augury_train.training.watch import Interrupted

STEPS = 8


class Watching(augury.Method):
    """Notes when it is called and what it finds."""

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.steps: list[int] = []
        self.found: list[Tensor] = []

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        assert run.network.training
        assert not torch.is_grad_enabled()
        self.steps.append(run.step)
        self.found.append(run.network.fc.weight.clone())


class Filling(augury.Method):
    """Makes all weights the number of the step, from 1."""

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        for parameter in run.network.parameters():
            parameter.fill_(run.step + 1)


class Taking(augury.Method):
    """Leaves nothing of the second step and of the fifth."""

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        batch.take(torch.arange(0 if run.step in (1, 4) else len(batch)))


class Noisy(augury.Method):
    """Draws in all three hooks of a step, and lets each draw count."""

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        batch.images = batch.images + 0.1 * torch.randn(batch.images.shape, generator=run.generator)

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput, run: augury.Run) -> Any:
        noise = torch.randn(output.features.shape, generator=run.generator)
        loss = yield
        return loss * run.random.uniform(0.5, 1.5) + 0.1 * (noise * output.features).mean()

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        for parameter in run.network.parameters():
            parameter.add_(1e-3 * run.random.random() * torch.randn(parameter.shape, generator=run.generator))


def trainer_of(config: RunConfig, **how: Any) -> Trainer:
    register = Register.load()
    for method in (Watching, Filling, Taking, Noisy, Breaks):
        register = register.offering(method.__name__.lower(), method)
    plan = make_plan(config, register)
    torch.manual_seed(5)
    network = Plain()
    object.__setattr__(plan, "build_network", lambda: copy.deepcopy(network))
    trainer = Trainer(plan, **how)
    trainer.loop.on_augmented = None
    return trainer


@pytest.mark.parametrize("parts", [1, 5])
def test_it_sees_the_weights_that_the_optimiser_has_changed(parts: int) -> None:
    trainer, after = trainer_of(small("watching", optim={"accumulation": parts})), []
    step = trainer.loop.optimizer.step

    def spying() -> None:
        before = trainer.network.fc.weight.detach().clone()
        step()
        after.append(trainer.network.fc.weight.detach().clone())
        assert not torch.equal(before, after[-1])

    trainer.loop.optimizer.step = spying  # type: ignore[method-assign]
    trainer.loop.run(lambda row: None)
    watching = trainer.methods["watching"]
    assert watching.steps == list(range(STEPS)), "the steps before this one"
    assert len(after) == len(watching.found) == STEPS
    assert all(map(torch.equal, watching.found, after))


@pytest.mark.parametrize(
    ("methods", "train", "expected"),
    [
        (["watching", ("breaks", {"step": 3})], {"on_nan": "skip"}, [0, 1, 3, 4, 5, 6, 7]),
        (["taking", "watching"], {}, [0, 2, 3, 5, 6, 7]),
    ],
    ids=["not finite", "nothing left"],
)
def test_it_is_not_called_for_a_step_that_changed_nothing(
    methods: list[Any], train: dict[str, Any], expected: list[int]
) -> None:
    trainer = trainer_of(small(*methods, train={"trackers": [], **train}))
    trainer.loop.run(lambda row: None)
    assert trainer.methods["watching"].steps == expected
    assert trainer.methods.run.step == STEPS


def test_the_moving_average_takes_what_it_leaves() -> None:
    trainer = trainer_of(small("filling", train={"ema": 0.75, "ema_warmup": False, "trackers": []}))
    trainer.loop.run(lambda row: None)
    expected = 1.0
    for step in range(2, STEPS + 1):
        expected = 0.75 * expected + 0.25 * step
    weight = trainer.loop.average.module.fc.weight
    torch.testing.assert_close(weight, torch.full_like(weight, expected))


@pytest.mark.parametrize("steps", [1, pytest.param(4, marks=pytest.mark.slow), 6])
def test_draws_of_all_hooks_resume_exactly(tmp_path: Path, steps: int) -> None:
    config = small("noisy", optim={"accumulation": 5})
    trainer_of(config).run(tmp_path / "whole")
    reporter = StopsAfter(steps)
    reporter.trainer = trainer_of(config, reporter=reporter)
    with pytest.raises(Interrupted):
        reporter.trainer.run(tmp_path / "parts")
    trainer_of(config).run(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
