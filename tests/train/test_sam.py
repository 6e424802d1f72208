"""Sharpness-aware minimisation: the ascent and the descent of the composed loss, against a loop written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import DROPOUT, Plain, assert_same_run, interrupted, losses_of, small, with_network
from timm.layers import BatchNormAct2d
from torch import nn

import augury
from augury.choice import Chosen
from augury.composition import Composition
from augury_train.backbones.recomputing import statistics_kept
from augury_train.backbones.sync_bn import synchronised
from augury_train.training.plan import make_plan
from augury_train.training.sam import SharpnessAware
from augury_train.training.trainer import Trainer, resume

RHO = 0.2


def test_the_weights_climb_along_the_gradient_and_come_back_bit_for_bit() -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    layers[0].bias.requires_grad_(False)
    before = copy.deepcopy(layers.state_dict())
    layers(torch.randn(7, 5).double()).square().sum().backward()
    trained = [p for p in layers.parameters() if p.requires_grad]
    gradients = [p.grad.clone() for p in trained if p.grad is not None]
    length = sum(float((g**2).sum()) for g in gradients) ** 0.5
    with SharpnessAware(RHO, layers.parameters()).climbed():
        for (name, weights), gradient in zip(
            [(n, p) for n, p in layers.named_parameters() if p.requires_grad], gradients, strict=True
        ):
            torch.testing.assert_close(weights.detach(), before[name] + RHO * gradient / length, rtol=1e-12, atol=1e-15)
            assert weights.grad is None
        assert torch.equal(layers[0].bias, before["0.bias"])
    for name, weights in layers.state_dict().items():
        assert torch.equal(weights, before[name])


def test_a_gradient_of_nothing_moves_nothing() -> None:
    layer = nn.Linear(2, 2)
    before = copy.deepcopy(layer.state_dict())
    (layer(torch.ones(1, 2)) * 0).sum().backward()
    with SharpnessAware(RHO, layer.parameters()).climbed():
        assert torch.equal(layer.weight, before["weight"])


@pytest.mark.parametrize("parts", [1, 5])
def test_steps_are_those_of_a_loop_by_hand(parts: int) -> None:
    """Two methods with a schedule, draws and statistics; the hand-written loop knows nothing of the trainer's."""
    config = small(optim={"sam": RHO, "accumulation": parts, "momentum": 0.0, "name": "momentum"})
    trainer = with_network(config, Plain())
    network = copy.deepcopy(trainer.network)
    made = [
        augury.compose([("dcutmix", {"k": 3}), "isda"], num_classes=10, classifier=n.fc, total_steps=8, seed=3)
        for n in (trainer.network, network)
    ]
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = made[0]
    methods = made[1]
    found = losses_of(trainer)
    batches = [b for epoch in range(2) for b in trainer.loop.loader.epoch(epoch)]
    expected = []
    rates = iter(_rates(trainer))
    for step in range(8):
        split = batches[step * parts : (step + 1) * parts]
        for batch in split:
            methods.augment_batch(batch)
        # The parts of a step draw one after the other, batch by batch, so the losses come in between.
        losses = [methods.compute_loss(b, augury.forward(network, b)) / parts for b in split]
        expected += [float(loss.detach()) * parts for loss in losses]
        gradients = torch.autograd.grad(sum(losses), list(network.parameters()))
        length = torch.stack([g.norm() for g in gradients]).norm()
        weights = [p.detach().clone() for p in network.parameters()]
        with torch.no_grad():
            for p, g in zip(network.parameters(), gradients, strict=True):
                p += RHO * g / length
        with methods.again():
            again = [methods.compute_loss(b, augury.forward(network, b)) / parts for b in split]
        expected += [float(loss.detach()) * parts for loss in again]
        gradients = torch.autograd.grad(sum(again), list(network.parameters()))
        rate = next(rates)
        with torch.no_grad():
            for p, w, g in zip(network.parameters(), weights, gradients, strict=True):
                p.copy_(w - rate * (g + config.optim.weight_decay * w))
        methods.step()
    assert found == pytest.approx(expected, rel=1e-4)
    for mine, theirs in zip(trainer.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trainer.methods["isda"].covariance, methods["isda"].covariance, rtol=1e-4, atol=1e-6)
    assert float(trainer.methods["isda"].count.sum()) == 8 * 25, "each row is counted once"


def _rates(trainer: Trainer) -> list[float]:
    """The learning rate of each step."""
    plain = small(optim={"sam": None, "momentum": 0.0, "name": "momentum"})
    other, rates = with_network(plain, Plain()), []
    step = other.methods.step

    def noting(changed: bool = True) -> None:
        rates.append(other.loop.optimizer.param_groups[0]["lr"])
        step(changed)

    object.__setattr__(other.methods, "step", noting)
    other.loop.run(lambda row: None)
    return rates


class Drawing(augury.Method):
    """Adds a term of random rows."""

    @augury.hookimpl(wrapper=True)
    def compute_loss(self, output: augury.ModelOutput, run: augury.Run) -> Generator[None, torch.Tensor, torch.Tensor]:
        loss = yield
        drawn = torch.rand(len(output.logits), generator=run.generator)
        self.seen.append((run.again, run.random.random(), drawn))
        return loss + (drawn[:, None] * output.logits).square().mean()


def test_methods_are_told_and_draw_the_same_again() -> None:
    trainer = with_network(small(optim={"sam": RHO}), Plain())
    methods = Composition([Chosen("drawing", Drawing, Drawing.Options())], trainer.plan.spec, seed=3, host=trainer)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = methods
    seen = methods["drawing"].seen = []
    trainer.loop.run(lambda row: None)
    assert [again for again, _, _ in seen] == [False, True] * 8
    for (_, number, drawn), (_, other_number, others) in zip(seen[::2], seen[1::2], strict=True):
        assert number == other_number
        assert torch.equal(drawn, others)
    assert len({number for _, number, _ in seen}) == 8


def test_batchnorm_and_dropout_see_a_batch_once() -> None:
    """At rho near 0 a step is an ordinary one: the same statistics, masks and weights."""
    ends = []
    for rho in (None, 1e-20):
        trainer = Trainer(make_plan(small("isda", model=DROPOUT, optim={"sam": rho})))
        trainer.loop.run(lambda row: None)
        ends.append((trainer.network.state_dict(), torch.get_rng_state(), trainer.passes))
    (plain, dropout, passes), (twice, dropout_too, passes_too) = ends
    for name, weights in plain.items():
        torch.testing.assert_close(twice[name], weights, rtol=1e-5, atol=1e-7, msg=name)
    assert torch.equal(dropout, dropout_too)
    assert passes_too == 2 * passes, "what a step costs is counted"


@pytest.mark.slow
def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    config = small("agmax", "isda", model=DROPOUT, optim={"sam": RHO}, train={"save_every": 1})
    Trainer(make_plan(config)).run(tmp_path / "whole")
    interrupted(config, tmp_path / "parts", 3)
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("value", [0, -0.05, "much", float("nan")])
def test_bad_rhos_are_refused(value: Any) -> None:
    with pytest.raises(augury.UsageError, match="optim.sam"):
        small(optim={"sam": value})


def test_steps_that_are_not_finite_are_told(tmp_path: Path) -> None:
    with pytest.raises(augury.AuguryError, match="no longer finite"):
        Trainer(make_plan(small(optim={"sam": RHO, "lr": 1e30}))).run(tmp_path / "run")


@pytest.mark.parametrize("kind", ["torch", "timm", "sync"])
def test_statistics_come_back_whatever_a_pass_made_of_them(kind: str) -> None:
    made: dict[str, Any] = {"torch": nn.BatchNorm2d, "timm": BatchNormAct2d, "sync": BatchNormAct2d}
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), made[kind](3)).train()
    if kind == "sync":
        network = synchronised(network, augury.Ranks())
    network(torch.randn(4, 1, 5, 5))
    before = copy.deepcopy(network.state_dict())
    with statistics_kept(network):
        network(torch.full((4, 1, 5, 5), float("nan"))).sum().backward()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_gradient_that_is_not_finite_moves_nothing() -> None:
    layer = nn.Linear(2, 2)
    before = copy.deepcopy(layer.state_dict())
    layer.weight.grad, layer.bias.grad = torch.full((2, 2), float("inf")), torch.ones(2)
    with SharpnessAware(RHO, layer.parameters()).climbed():
        for name, weights in layer.state_dict().items():
            assert torch.equal(weights, before[name])


def test_what_is_logged_is_of_the_first_time() -> None:
    trainer = with_network(small(optim={"sam": RHO}), Plain())
    made = augury.compose(["isda"], num_classes=10, classifier=trainer.network.fc, total_steps=8, seed=3)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = made
    trainer.loop.run(lambda row: None)
    assert made.run.scalars.counts == {"isda/lambda": 8}
