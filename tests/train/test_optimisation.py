"""Optimisers, schedules and bounds of gradients against timm's and torch's own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.optim import list_optimizers
from timm.utils.agc import adaptive_clip_grad
from torch import nn

from augury.errors import UsageError
from augury_train.config import OptimConfig, ScheduleConfig, read_config
from augury_train.training.optimisation import Schedule, choose_precision, clipper, make_accelerator, make_optimizer

CPU = torch.device("cpu")
EPOCHS, STEPS, LR = 6, 5, 0.1


class Network(nn.Module):
    """A convolution, a BatchNorm and a classifier, in timm's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, 3)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": "^conv|^bn", "blocks": "^blocks"}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.bn(self.conv(images)).flatten(1))


def with_gradients(scale: float = 1.0) -> Network:
    network = Network()
    (scale * network(torch.randn(6, 1, 4, 4)).pow(2).sum()).backward()
    return network


# The learning rate over time.


def rates(
    steps_per_epoch: int = STEPS, top1: Callable[[int], float] = lambda epoch: 0.0, **settings: Any
) -> list[float]:
    """The rate that each step of a training is made at."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=LR)
    schedule, found = Schedule(ScheduleConfig(**settings), optimizer, EPOCHS, steps_per_epoch), []
    for epoch in range(EPOCHS):
        for step in range(steps_per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step(epoch * steps_per_epoch + step + 1)
        schedule.epoch(epoch + 1, top1(epoch + 1))
    return found


def held(by_epoch: list[float]) -> list[float]:
    return [rate for rate in by_epoch for _ in range(STEPS)]


@pytest.mark.parametrize("every", ["step", "epoch"])
@pytest.mark.parametrize("steps", [STEPS, 1, 7])
def test_multistep_decays_when_so_many_epochs_are_done(every: str, steps: int) -> None:
    found = rates(steps, name="multistep", milestones=[4, 2], decay_rate=0.2, every=every)
    by_epoch = [LR, LR, LR * 0.2, LR * 0.2, LR * 0.04, LR * 0.04]
    assert found == pytest.approx([rate for rate in by_epoch for _ in range(steps)])


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_step_decays_after_every_so_many_epochs(every: str) -> None:
    found = rates(name="step", decay_epochs=2, decay_rate=0.5, every=every)
    assert found == pytest.approx(held([LR, LR, LR / 2, LR / 2, LR / 4, LR / 4]))


def test_plateau_decays_after_its_patience_and_counts_epochs_whatever_is_set() -> None:
    accuracies = {1: 50.0, 2: 60.0, 3: 55.0, 4: 58.0, 5: 50.0, 6: 40.0}
    for every in ("step", "epoch"):
        found = rates(top1=accuracies.__getitem__, name="plateau", patience=1, decay_rate=0.1, every=every)
        # Epochs 3 and 4 were no better than 2, and one such is let pass.
        assert found == pytest.approx(held([LR, LR, LR, LR, LR / 10, LR / 10]))


def test_a_schedule_that_timm_cannot_make_is_told_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^schedule\.name=rsqrt: timm cannot make it .* when there is no warmup\.$"):
        rates(name="rsqrt")


def test_plateau_remembers_the_best_accuracy_and_its_patience() -> None:
    def made() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=LR)
        return optimizer, Schedule(ScheduleConfig(name="plateau", patience=1), optimizer, 10, STEPS)

    (_, first), (optimizer, second) = made(), made()
    first.epoch(1, 50.0)
    first.epoch(2, 40.0)
    second.load_state_dict(first.state_dict())
    second.epoch(3, 45.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(LR / 10)


# Bounds of the gradients.


@pytest.mark.parametrize("mode", ["norm", "value", "agc"])
def test_gradients_are_bounded_as_torch_and_timm_do(mode: str) -> None:
    network, method = with_gradients(50.0), nn.Linear(2, 2)
    method(torch.randn(3, 2)).sum().backward()
    expected, other = copy.deepcopy(network), copy.deepcopy(method)
    mine, everything = ([*a.parameters(), *b.parameters()] for a, b in ((network, method), (expected, other)))
    for one, copied in zip(mine, everything, strict=True):
        copied.grad = one.grad.clone()
    if mode == "norm":
        nn.utils.clip_grad_norm_(everything, 0.1)
    elif mode == "value":
        nn.utils.clip_grad_value_(everything, 0.1)
    else:
        adaptive_clip_grad([*expected.conv.parameters(), *expected.bn.parameters()], 0.1)
    config = read_config({"device": "cpu"})
    clip = clipper(OptimConfig(clip=0.1, clip_mode=mode), make_accelerator(config), network, method)
    assert clip is not None
    before = network.conv.weight.grad.clone()
    clip()
    assert not torch.equal(network.conv.weight.grad, before)
    for one, theirs in zip(mine, everything, strict=True):
        assert torch.equal(one.grad, theirs.grad)


def test_without_a_bound_nothing_clips() -> None:
    assert clipper(OptimConfig(), make_accelerator(read_config({"device": "cpu"})), Network(), nn.Identity()) is None


# Optimisers.


def decays(config: OptimConfig, network: nn.Module, methods: nn.Module) -> dict[str, float]:
    """The weight decay of each parameter by name."""
    optimizer = make_optimizer(config, network, methods, CPU)
    by_parameter = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    both = [*network.named_parameters(), *((f"methods.{name}", p) for name, p in methods.named_parameters())]
    return {name: by_parameter[id(p)] for name, p in both if id(p) in by_parameter}


def test_decay_reaches_all_parameters_or_spares_norms_and_biases() -> None:
    method = nn.Linear(2, 2)
    everywhere = decays(OptimConfig(weight_decay=0.01), Network(), method)
    assert set(everywhere.values()) == {0.01}
    assert len(everywhere) == 8
    spared = decays(OptimConfig(weight_decay=0.01, decay_norm_and_bias=False), Network(), method)
    assert {name for name, decay in spared.items() if decay == 0} == {"conv.bias", "bn.weight", "bn.bias", "fc.bias"}


def test_frozen_parameters_are_in_no_group() -> None:
    network = Network()
    network.conv.requires_grad_(False)
    for more in ({}, {"decay_norm_and_bias": False}, {"layer_decay": 0.5}):
        held_names = decays(OptimConfig(**more), network, nn.Identity())
        assert set(held_names) == {"bn.weight", "bn.bias", "fc.weight", "fc.bias"}


def test_layer_decay_scales_the_rate_from_the_classifier_down() -> None:
    network = Network()
    optimizer = make_optimizer(OptimConfig(lr=LR, layer_decay=0.5), network, nn.Identity(), CPU)
    Schedule(ScheduleConfig(name="constant"), optimizer, EPOCHS, STEPS)
    scales = {id(p): group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    assert scales[id(network.fc.weight)] == 1.0
    assert scales[id(network.conv.weight)] == 0.5
    by_rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert by_rate[id(network.conv.weight)] == pytest.approx(LR / 2)


def test_adamw_steps_as_torchs_own() -> None:
    network = with_gradients()
    other = copy.deepcopy(network)
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        theirs.grad = mine.grad.clone()
    make_optimizer(OptimConfig(name="adamw", lr=0.01, weight_decay=0.1), network, nn.Identity(), CPU).step()
    torch.optim.AdamW(other.parameters(), lr=0.01, weight_decay=0.1).step()
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("name", list_optimizers())
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_every_optimiser_trains_or_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some compile their steps, which takes minutes and is not what is asked here.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    network = with_gradients()
    before = copy.deepcopy(network.state_dict())
    made, told = None, ""
    try:
        made = make_optimizer(OptimConfig(name=name, lr=0.01), network, nn.Linear(2, 2), CPU)
    except UsageError as error:
        told = str(error)
    if made is None:
        assert re.match(rf"optim\.name={name}[: ]", told)
        assert "\n" not in told
        return
    made.step()
    made.step()
    assert any(not torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.isfinite().all() for p in network.parameters())


def test_settings_that_an_optimiser_does_not_take_are_told_in_one_line() -> None:
    with pytest.raises(UsageError, match=r"^optim\.name=adamw: timm cannot make it .*momentums") as found:
        make_optimizer(OptimConfig(name="adamw", kwargs={"momentums": 3}), Network(), nn.Identity(), CPU)
    assert "\n" not in str(found.value)


# Precision.


def test_precision_follows_the_device() -> None:
    def chosen(precision: str) -> str:
        return choose_precision(read_config({"device": "cpu", "train": {"precision": precision}}))

    assert [chosen(name) for name in ("auto", "fp32", "bf16", "fp16")] == ["no", "no", "bf16", "fp16"]
    for precision, wanted in (("bf16", "bf16"), ("fp32", "no"), ("bf16", "bf16")):
        config = read_config({"device": "cpu", "train": {"precision": precision}})
        assert make_accelerator(config).mixed_precision == wanted
