"""Gradient checkpointing: the same training in less memory, refused where it cannot be that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.small_runs import assert_same_run, interrupted, losses_of, small
from torch import nn

import augury
from augury.errors import UsageError
from augury.registry import Register
from augury_train.config import RunConfig
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, resume

NETWORKS: dict[str, dict[str, Any]] = {
    "test_vit": {"name": "test_vit"},
    "test_vit with dropout": {"name": "test_vit", "kwargs": {"proj_drop_rate": 0.2, "drop_path_rate": 0.2}},
    "test_resnet": {"name": "test_resnet"},
    "test_resnet with dropout": {"name": "test_resnet", "kwargs": {"drop_rate": 0.2, "drop_path_rate": 0.2}},
}
FREEZING: dict[str, Any] = {"name": "test_resnet", "frozen_stages": 2}


def config_of(model: dict[str, Any], checkpointing: bool, *methods: str, **optim: Any) -> RunConfig:
    return small(
        *methods,
        model={**model, "grad_checkpointing": checkpointing},
        data={"image_size": 32, "images_per_class": 6},
        optim={"epochs": 1, "batch_size": 10, **optim},
    )


@pytest.fixture
def recomputed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often blocks' functions were called within a backward pass."""
    calls: list[int] = []
    backward = torch.Tensor.backward

    def watched(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        before = sum(CALLS.values())
        backward(self, *args, **kwargs)
        calls.append(sum(CALLS.values()) - before)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    return calls


CALLS = {"made": 0}


def trained(config: RunConfig) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and what the network holds after the training."""
    trainer = Trainer(make_plan(config))
    trainer.loop.on_augmented = None
    for module in trainer.network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda *_: CALLS.update(made=CALLS["made"] + 1))
    return losses_of(trainer), trainer.network.state_dict()


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", [*NETWORKS.values(), FREEZING], ids=[*NETWORKS, "frozen stages"])
def test_the_training_is_the_same(model: dict[str, Any], accumulation: int, recomputed: list[int]) -> None:
    methods = ["dcutmix", "isda"]
    losses, state = trained(config_of(model, False, *methods, accumulation=accumulation))
    assert not any(recomputed)
    recomputed.clear()
    found, kept = trained(config_of(model, True, *methods, accumulation=accumulation))
    assert all(recomputed), "blocks are computed once more"
    assert found == pytest.approx(losses, rel=1e-5)
    for name, value in state.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_vit with dropout", "test_resnet with dropout"])
def test_it_goes_on_exactly(tmp_path: Path, model: str) -> None:
    config = config_of(NETWORKS[model], True, "isda")
    Trainer(make_plan(config)).run(tmp_path / "whole")
    interrupted(config, tmp_path / "parts", 3)
    resume(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_network_without_it_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(config_of({"name": "resnet20_cifar"}, True))
    assert str(caught.value) == (
        "model.grad_checkpointing=true: timm has none for `resnet20_cifar`. Set it to false; optim.accumulation saves "
        "memory, too."
    )


class Inside(augury.Method):
    """Says that it mixes inside the network."""

    mixes_hidden = True

    @augury.hookimpl
    def augment_batch(self) -> None:
        """Would mix."""


def test_mixing_inside_the_network_is_refused() -> None:
    """A block's second computation would go on from rows that are not mixed, and its gradients would be others."""
    register = Register.load().offering("inside", Inside)
    make_plan(config_of(NETWORKS["test_vit"], False, "inside"), register)
    with pytest.raises(UsageError) as caught:
        make_plan(config_of(NETWORKS["test_vit"], True, "inside"), register)
    assert str(caught.value) == (
        "model.grad_checkpointing=true: inside mixes inside the network, and blocks that are computed once more would "
        "not be mixed. Set it to false, or leave inside out."
    )
