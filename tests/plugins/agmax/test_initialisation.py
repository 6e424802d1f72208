"""How AgMax starts the Q-network, and in the official variant the network itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.plugins.agmax.reference import CLASSES, composed
from tests.train.small_runs import assert_same_run, resumed, small
from torch import Tensor, nn

import augury
from augury_agmax import AgMax
from augury_train.config import RunConfig
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, train

OFFICIAL = {"q_init_std": 0.2, "variant": "official"}


def network_of(seed: int = 0) -> nn.Sequential:
    """Convolutions with and without biases, a hidden linear layer that is no classifier, and a classifier."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.Sequential(nn.ReLU(), nn.Conv2d(32, 32, 3, groups=2)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 100),
        nn.Linear(100, CLASSES),
    )


def after_stage(
    network: nn.Sequential, seed: int = 0, ranks: augury.Ranks | None = None, **options: Any
) -> dict[str, Tensor]:
    """The network's weights when the stage is over."""
    methods = augury.compose(
        [(AgMax, options)],
        num_classes=CLASSES,
        network=network,
        classifier=network[-1],
        seed=seed,
        ranks=ranks,
    )
    methods.pre_train_stage()
    return {name: p.detach().clone() for name, p in network.state_dict().items()}


REDRAWN = {"0.weight", "2.1.weight", "2.1.bias", "6.weight", "6.bias"}


def test_the_q_network_starts_normal_where_asked() -> None:
    q = composed(n_units=500, classes=50, q_init_std=0.2)["agmax"].q
    for layer in (q[0], q[2]):
        assert layer.weight.std().item() == pytest.approx(0.2, rel=0.03)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.01)
        assert not layer.bias.any()
    assert all(p.requires_grad for p in q.parameters())


def test_the_q_network_starts_as_torch_does_where_not() -> None:
    q = composed(n_units=500, classes=50)["agmax"].q
    for layer in (q[0], q[2]):
        bound = layer.in_features**-0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert layer.bias.any()


def test_its_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = composed(seed=3, q_init_std=0.2).state_dict()["methods.agmax.q.0.weight"]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(composed(seed=3, q_init_std=0.2).state_dict()["methods.agmax.q.0.weight"], first)
    assert not torch.equal(composed(seed=4, q_init_std=0.2).state_dict()["methods.agmax.q.0.weight"], first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [{}, {"q_init_std": 0.2}, {"variant": "official"}, {"variant": "official", "agreement": "kl"}],
    ids=["default", "paper", "official without a deviation", "official ablation without one"],
)
def test_the_network_is_left_alone(options: dict[str, Any]) -> None:
    network = network_of()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    after = after_stage(network, **options)
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("agreement", ["mi", "mse"])
def test_the_official_variant_redraws_classifier_and_convolutions(agreement: str) -> None:
    network = network_of()
    before = {name: p.clone() for name, p in network.state_dict().items()}
    torch_draws = torch.get_rng_state()
    after = after_stage(network, agreement=agreement, **OFFICIAL)
    assert {name for name in before if not torch.equal(before[name], after[name])} == REDRAWN
    weights = torch.cat([after[name].flatten() for name in sorted(REDRAWN) if name.endswith("weight")])
    assert weights.std().item() == pytest.approx(0.2, rel=0.05)
    assert not after["2.1.bias"].any()
    assert not after["6.bias"].any()
    assert torch.equal(torch.get_rng_state(), torch_draws)
    assert all(p.requires_grad and p.is_leaf for p in network.parameters())


def test_what_is_redrawn_depends_on_the_seed_and_not_on_what_was_there() -> None:
    one, same, other = (after_stage(network_of(n), seed, **OFFICIAL) for n, seed in ((1, 5), (2, 5), (1, 6)))
    for name in REDRAWN:
        assert torch.equal(one[name], same[name])
        assert name.endswith("bias") or not torch.equal(one[name], other[name])


def test_a_frozen_convolution_is_not_redrawn_silently() -> None:
    network = network_of()
    network[0].requires_grad_(False)
    with pytest.raises(augury.UsageError, match=r"^agmax: variant=official draws every convolution anew, and some"):
        after_stage(network, **OFFICIAL)


def test_a_loop_that_gave_no_network_is_told() -> None:
    methods = composed(**OFFICIAL)
    with pytest.raises(augury.UsageError, match=r"^agmax: needs `network`, which augury.compose\(...\) was not given"):
        methods.pre_train_stage()


@pytest.mark.parametrize("value", [0.0, -0.2, float("nan"), float("inf")])
def test_a_deviation_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(augury.UsageError, match="agmax: option `q_init_std` must be (> 0|a finite number)"):
        composed(q_init_std=value)


def test_all_processes_draw_the_same_network() -> None:
    first, second = augury.Ranks(), augury.Ranks()
    second.rank = 1
    one, other = (after_stage(network_of(r.rank), ranks=r, **OFFICIAL) for r in (first, second))
    assert all(torch.equal(one[name], other[name]) for name in REDRAWN)


def official_run(**sections: Any) -> RunConfig:
    return small(("agmax", {"n_units": 8, **OFFICIAL}), **sections)


@pytest.mark.slow
def test_a_run_starts_so_once_and_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = official_run(train={"ema": 0.9})
    train(config, tmp_path / "run")
    resumed(config, tmp_path / "resumed", 3)
    assert_same_run(tmp_path / "run", tmp_path / "resumed")


def test_the_average_of_a_run_forgets_what_was_there_before_the_stage() -> None:
    # A rate at which no weight changes.
    trainer = Trainer(make_plan(official_run(train={"ema": 0.9}, optim={"epochs": 1, "lr": 1e-30})))
    before = trainer.network.conv1.weight.detach().clone()
    trainer.methods.pre_train_stage()
    drawn = trainer.network.conv1.weight.detach().clone()
    assert drawn.std().item() == pytest.approx(0.2, rel=0.15)
    assert not torch.equal(before, drawn)
    trainer.loop.run(lambda row: None)
    assert torch.equal(trainer.loop.result.conv1.weight, drawn)


def test_trained_weights_are_not_drawn_anew() -> None:
    spec = augury.Spec(num_classes=3, starts_trained=True)
    with pytest.raises(augury.UsageError, match="starts from trained weights"):
        AgMax.check(AgMax.Options(variant="official", q_init_std=0.2), spec)
    AgMax.check(AgMax.Options(variant="official"), spec)
    AgMax.check(AgMax.Options(q_init_std=0.2), spec)
