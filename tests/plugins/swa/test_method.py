"""SWA in a loop of one's own and in real runs: the exported network is the mean of the weights at epochs' ends."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.small_runs import assert_same_run, resumed, rows_of, small
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury_swa import SWA
from augury_swa.functional import flat, set_statistics_
from augury_train.training.plan import make_plan
from augury_train.training.trainer import Trainer, train

C, EPOCH = 3, 4


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6) if norm else nn.Tanh(), nn.ReLU(), nn.Linear(6, C)]
    return nn.Sequential(*layers).double()


class Lends:
    """Lends the images of four batches, each process its share."""

    folder = None

    def __init__(self, methods: augury.Composition) -> None:
        self.methods = methods

    def loader(self, pipeline: str, images: Tensor | None = None) -> Iterator[augury.Batch]:
        assert pipeline == "augmented"
        ranks = self.methods.run.ranks
        for number in range(ranks.rank, 4, ranks.size):
            yield self.methods.batch(batch(number), torch.zeros(5, dtype=torch.int64))


def batch(number: int) -> Tensor:
    return torch.randn(5, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


def composed(net: nn.Module, epochs: int, host: bool = True, **options: Any) -> augury.Composition:
    methods = augury.compose(
        [(SWA, options)],
        num_classes=C,
        network=net,
        build_network=lambda: copy.deepcopy(net),
        total_steps=epochs * EPOCH,
        steps_per_epoch=EPOCH,
    )
    methods.double()
    if host:
        methods.pre_train_stage(Lends(methods))
    return methods


def walk(
    net: nn.Module, methods: augury.Composition, changed: Callable[[int], bool] = lambda step: True
) -> list[Tensor]:
    """Move the weights at random until the training ends; the weights after each step, before the method saw them."""
    g, snapshots = torch.Generator().manual_seed(7), []
    for step in range(methods.run.step, methods.run.spec.total_steps):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn(parameter.shape, dtype=torch.float64, generator=g)
            net(batch(step))
        snapshots.append(flat(net).clone())
        methods.step(changed(step))
        if step + 1 < methods.run.spec.total_steps:
            assert torch.equal(flat(net), snapshots[-1]), "the training goes on with the weights themselves"
    return snapshots


@pytest.mark.parametrize(
    ("epochs", "options", "averaged"),
    [
        (8, {}, [6, 7, 8]),
        (8, {"start": 0.5}, [4, 5, 6, 7, 8]),
        (8, {"start": 0.5, "every": 2}, [4, 6, 8]),
        (8, {"start": 0.6, "every": 2}, [5, 7]),
        (8, {"start": 0.5, "every": 50}, [4]),
        (3, {"start": 0}, [1, 2, 3]),
        (1, {}, [1]),
        (10, {"start": 0.3}, [3, 4, 5, 6, 7, 8, 9, 10]),
        (4, {"start": 0.999}, [4]),
    ],
)
def test_the_end_is_the_mean_of_the_weights_at_the_ends_of_epochs(
    epochs: int, options: dict[str, Any], averaged: list[int]
) -> None:
    net = network()
    methods = composed(net, epochs, **options)
    snapshots = walk(net, methods)
    expected = torch.stack([snapshots[EPOCH * epoch - 1] for epoch in averaged]).mean(0)
    torch.testing.assert_close(flat(net), expected, rtol=1e-12, atol=1e-14)
    assert methods.post_epoch({})["swa/models"] == len(averaged)
    # The statistics are those of the averaged weights.
    reference = copy.deepcopy(net)
    set_statistics_(reference, [batch(number) for number in range(4)])
    assert torch.equal(net[2].running_var, reference[2].running_var)
    hidden = torch.stack([net[1](batch(number).flatten(1)) for number in range(4)])
    torch.testing.assert_close(net[2].running_mean, hidden.mean((0, 1)), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net[2].running_var, hidden.var(1).mean(0), rtol=1e-12, atol=1e-14)


def test_an_epoch_whose_last_step_was_left_out_is_not_averaged() -> None:
    net = network()
    methods = composed(net, 4, start=0.25)
    snapshots = walk(net, methods, lambda step: step != 2 * EPOCH - 1)
    expected = torch.stack([snapshots[EPOCH * epoch - 1] for epoch in (1, 3, 4)]).mean(0)
    torch.testing.assert_close(flat(net), expected, rtol=1e-12, atol=1e-14)


def test_where_every_averaged_step_was_left_out_the_last_weights_stay() -> None:
    net = network()
    methods = composed(net, 4, start=0.5, every=9)
    snapshots = walk(net, methods, lambda step: step < EPOCH)
    torch.testing.assert_close(flat(net), snapshots[-1], rtol=1e-12, atol=0)


def test_a_loop_that_lends_no_data_is_refused_at_its_first_step() -> None:
    net = network()
    methods = composed(net, 2, host=False)
    with pytest.raises(augury.UsageError, match="swa: needs the data, and this loop lends none"):
        methods.step()
    plain = network(norm=False)
    walk(plain, composed(plain, 2, host=False))


def test_facts_that_are_missing_are_asked_for() -> None:
    with pytest.raises(augury.UsageError) as error:
        augury.compose(["swa"], num_classes=C)
    told = str(error.value)
    for fact in ("total_steps", "steps_per_epoch", "build_network"):
        assert f"swa: needs `{fact}`, which is not known. Pass {fact}=… to augury.compose." in told


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("start", -0.1, ">= 0"),
        ("start", 1, "< 1"),
        ("start", float("nan"), ""),
        ("every", 0, ">= 1"),
        ("every", 1.5, "a whole number"),
        ("every", 10_001, "<= 10000"),
    ],
)
def test_bad_options_are_refused_by_name(option: str, value: Any, told: str) -> None:
    with pytest.raises(augury.UsageError, match=rf"swa: option `{option}` .*{re.escape(told)}"):
        augury.compose([("swa", {option: value})], num_classes=C)


def test_another_average_and_an_early_end_are_refused_beside_it() -> None:
    with pytest.raises(augury.UsageError) as error:
        make_plan(small("swa", train={"ema": 0.99, "patience": 3}))
    assert str(error.value).splitlines() == [
        "swa leaves its network after the last step, and train.patience=3 would end the training before that. Leave "
        "train.patience out, or swa.",
        "swa leaves its network after the last step, and train.ema=0.99 is another average, which would be kept "
        "instead. Leave train.ema out, or swa.",
    ]


def in_a_process(rank: int, size: int, folder: Path) -> None:
    """A whole training of one's own loop on this process's share of the images."""
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    net = network()
    methods = composed(net, 4, start=0.5)
    walk(net, methods)
    torch.save(net.state_dict(), folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_network_and_the_statistics_of_one(tmp_path: Path) -> None:
    in_a_process(0, 1, tmp_path)
    mp.spawn(in_a_process, args=(2, tmp_path), nprocs=2)
    one, *both = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    for found in both:
        for key in one.keys() - {"2.num_batches_tracked"}:
            torch.testing.assert_close(found[key], one[key], rtol=1e-12, atol=1e-14)
    assert all(torch.equal(both[0][key], both[1][key]) for key in one)


LONG = {"optim": {"epochs": 4, "batch_size": 25, "lr": 0.05}, "schedule": {"name": "constant"}}


@pytest.mark.slow
def test_a_runs_weights_are_the_average_with_statistics_of_its_own(tmp_path: Path) -> None:
    trainer = Trainer(make_plan(small(("swa", {"start": 0.5}), **LONG)))
    snapshots, done = [], trainer.methods.step

    def step(changed: bool = True) -> None:
        snapshots.append(flat(trainer.network).double())
        done(changed)

    trainer.methods.step = step  # type: ignore[method-assign]
    result = trainer.run(tmp_path / "run")
    last, best = (load_file(tmp_path / "run" / f"{which}.safetensors") for which in ("last", "best"))
    assert all(torch.equal(last[key], best[key]) for key in last)
    assert result.best_epoch == 4
    parameters = [name for name, _ in trainer.network.named_parameters()]
    found = torch.cat([last[name].flatten() for name in parameters]).double()
    expected = torch.stack([snapshots[number] for number in (7, 11, 15)]).mean(0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    reference = copy.deepcopy(trainer.network).train()
    reference.load_state_dict(last)
    torch.optim.swa_utils.update_bn([batch.images for batch in trainer.loader("augmented")], reference)
    statistics = [key for key in last if "running" in key]
    assert statistics
    for key in statistics:
        torch.testing.assert_close(last[key], reference.state_dict()[key], rtol=1e-4, atol=1e-6)
    assert rows_of(tmp_path / "run")[-1]["swa/models"] == 3
    assert rows_of(tmp_path / "run")[-1]["val_top1"] == pytest.approx(result.last["val"].top1)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [9, 16], ids=["while it averages", "after the last step"])
@pytest.mark.parametrize("others", [(), ("dcutmix", "isda")], ids=["alone", "dcutmix+isda"])
def test_a_run_is_resumed_bit_for_bit(others: tuple[str, ...], steps: int, tmp_path: Path) -> None:
    config = small(*others, ("swa", {"start": 0.5}), **LONG)
    train(config, tmp_path / "whole")
    resumed(config, tmp_path / "resumed", steps)
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")
