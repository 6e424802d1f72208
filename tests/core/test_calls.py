"""How hooks are called: gradients, errors, state in a larger module, and a loop of one's own from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

import augury


class Scaled(augury.Method):
    """Multiplies images, and the loss by a parameter of its own."""

    class Options(augury.Options):
        by: float = Field(2.0, gt=0)

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.factor = nn.Parameter(torch.ones(()))
        self.register_buffer("count", torch.zeros(()))
        self.aid = self.freeze(nn.Linear(4, 2))

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        batch.images = batch.images * self.options.by * self.factor
        self.count += len(batch)

    @augury.hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        return self.factor * (yield)


class Raising(augury.Method):
    """Raises where its option says."""

    class Options(augury.Options):
        at: str
        error: type[Exception] = ZeroDivisionError

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.fail("init")

    def fail(self, place: str) -> None:
        if self.options.at == place:
            raise self.options.error("by nothing")

    @augury.hookimpl
    def pre_train_stage(self) -> None:
        self.fail("stage")

    @augury.hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        self.fail("before")
        loss = yield
        self.fail("after")
        return loss


def loss_of(methods: augury.Composition) -> Tensor:
    batch = methods.batch(torch.ones(2, 1, 2, 2), torch.tensor([0, 2]))
    methods.augment_batch(batch)
    return methods.compute_loss(batch, augury.ModelOutput(torch.ones(2, 4), torch.zeros(2, 3)))


def test_batches_are_changed_without_gradient_and_losses_reach_the_methods_parameters() -> None:
    methods = augury.compose([Scaled], num_classes=3)
    batch = methods.batch(torch.ones(2, 1, 2, 2), torch.tensor([0, 2]))
    methods.augment_batch(batch)
    assert torch.equal(batch.images, torch.full((2, 1, 2, 2), 2.0))
    assert not batch.images.requires_grad
    loss = loss_of(methods)
    loss.backward()
    torch.testing.assert_close(methods["scaled"].factor.grad, loss.detach())


def test_only_what_is_trained_is_a_parameter() -> None:
    methods = augury.compose([Scaled], num_classes=3, classifier=nn.Linear(4, 3), network=nn.Linear(4, 3))
    assert [name for name, _ in methods.named_parameters()] == ["methods.scaled.factor"]
    assert all(parameter.requires_grad for parameter in methods.parameters())


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("order", [0, 1])
def test_a_wrappers_error_is_named_after_it_whoever_stands_around_it(place: str, order: int) -> None:
    composition: list[Any] = [Scaled, (Raising, {"at": place})]
    methods = augury.compose(composition[::-1] if order else composition, num_classes=3)
    with pytest.raises(augury.MethodError, match="^raising: `compute_loss` raised ZeroDivisionError: by nothing") as e:
        loss_of(methods)
    assert isinstance(e.value.__cause__, ZeroDivisionError)
    assert str(e.value).endswith(f" ({Path(__file__).name}:{raising_line()})"), "where in the method's own code"


def raising_line() -> int:
    """Where `Raising` raises."""
    lines = Path(__file__).read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if "by nothing" in line)


def test_an_error_in_the_making_names_the_method() -> None:
    with pytest.raises(augury.MethodError, match="^raising: `__init__` raised ZeroDivisionError") as caught:
        augury.compose([Scaled, (Raising, {"at": "init"})], num_classes=3)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("place", ["init", "stage", "before", "after"])
def test_an_error_that_is_told_in_augurys_form_stays_as_it_is(place: str) -> None:
    def everything() -> None:
        methods = augury.compose([Scaled, (Raising, {"at": place, "error": augury.UsageError})], num_classes=3)
        methods.pre_train_stage()
        loss_of(methods)

    with pytest.raises(augury.UsageError, match="^by nothing$"):
        everything()


def test_a_stage_that_fails_is_over() -> None:
    methods = augury.compose([(Raising, {"at": "stage"})], num_classes=3)
    with pytest.raises(augury.MethodError, match="raising: `pre_train_stage`"):
        methods.pre_train_stage()
    assert methods.run.draws_for == 0


def test_an_epochs_row_is_shown_not_lent() -> None:
    class Taking(augury.Method):
        @augury.hookimpl
        def post_epoch(self, metrics: dict[str, Any]) -> None:
            metrics["val_top1"] = 1.0

    row = {"epoch": 1, "val_top1": 0.5}
    assert augury.compose([Taking], num_classes=3).post_epoch(row) == {}
    assert row == {"epoch": 1, "val_top1": 0.5}


def test_logged_numbers_are_means_over_the_epoch_wherever_they_come_from() -> None:
    class Logging(augury.Method):
        @augury.hookimpl
        def augment_batch(self, run: augury.Run) -> None:
            run.log("step", run.step)
            if run.step == 0:
                run.log("once", torch.tensor(0.1, requires_grad=True))

    methods = augury.compose([Logging], num_classes=3)
    for _ in range(4):
        loss_of(methods)
        methods.step()
    assert methods.post_epoch({}) == pytest.approx({"logging/step": 1.5, "logging/once": 0.1})
    assert methods.post_epoch({}) == {}


def test_state_goes_with_a_larger_module_and_the_step_with_it() -> None:
    outer = nn.ModuleDict({"methods": augury.compose([Scaled], num_classes=3)})
    loss_of(outer["methods"])
    for _ in range(3):
        outer["methods"].step()
    state = outer.state_dict()
    assert {"methods.step", "methods.methods.scaled.count", "methods.methods.scaled.aid.module.weight"} <= state.keys()
    fresh = nn.ModuleDict({"methods": augury.compose([Scaled], num_classes=3, seed=4)})
    assert fresh.load_state_dict(state) == ([], [])
    assert fresh["methods"].run.step == 3
    assert "methods.step" in state, "what was loaded from is left as it was"
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_loop_of_the_design_trains_network_and_methods() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    steps = 30
    methods = augury.compose(
        ["dcutmix", ("isda", {"lambda_0": 0.5}), "agmax"], num_classes=3, classifier=network[-1], total_steps=steps
    )
    optimizer = torch.optim.SGD([*network.parameters(), *methods.parameters()], lr=0.1)
    before = methods["agmax"].q[0].weight.detach().clone()
    labels = torch.arange(12) % 3
    images = torch.randn(3, 1, 4, 4)[labels]
    losses = []
    for _ in range(steps):
        batch = methods.batch((images + 0.1 * torch.randn_like(images), images), labels)
        methods.augment_batch(batch)
        features = network[:-1](batch.images)
        loss = methods.compute_loss(batch, augury.ModelOutput(features, network[-1](features)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        methods.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5])
    assert (network(images).argmax(1) == labels).all()
    assert methods["isda"].count.sum() == pytest.approx(24 * steps, rel=1e-5)
    assert not torch.equal(methods["agmax"].q[0].weight, before)
    row = methods.post_epoch({"epoch": 1})
    assert row["isda/lambda"] == pytest.approx(0.5 * (steps - 1) / 2 / steps)


class Looks(augury.Method):
    """Remembers the steps after which it was asked to look at the network."""

    facts = ("build_network",)

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.steps: list[int] = []

    @augury.hookimpl
    def post_step(self, run: augury.Run) -> None:
        assert not torch.is_grad_enabled()
        self.steps.append(run.step)


@pytest.mark.parametrize("total", [4, None])
def test_methods_look_after_steps_that_changed_weights_and_after_the_last(total: int | None) -> None:
    methods = augury.compose([Looks], num_classes=2, total_steps=total, build_network=lambda: nn.Linear(4, 2))
    for changed in (True, False, True, False):
        methods.step(changed)
    assert methods["looks"].steps == ([0, 2] if total is None else [0, 2, 3])
    assert methods.run.step == 4


def test_a_network_that_methods_build_is_asked_for_and_can_be_given() -> None:
    with pytest.raises(augury.UsageError, match=r"looks: needs `build_network`.* Pass build_network=… to augury"):
        augury.compose([Looks], num_classes=2)
    methods = augury.compose([Looks], num_classes=2, build_network=lambda: nn.Linear(4, 2))
    assert isinstance(methods["looks"].spec.build_network(), nn.Linear)
