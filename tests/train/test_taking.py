"""A method that takes images out of batches, and what the loop makes of batches that are left empty."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from tests.train.small_runs import Plain, small, with_network

import augury
from augury.choice import Chosen
from augury.composition import Composition
from augury_train.training.trainer import Trainer


class Taking(augury.Method):
    """Keeps so many of the images, in turn."""

    class Options(augury.Options):
        kept: tuple[int, ...]

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        batch.take(torch.arange(self.options.kept[run.step % len(self.options.kept)]))


def trainer_of(*kept: int, parts: int = 1, **sections: dict[str, Any]) -> Trainer:
    """A trainer whose methods are one that takes."""
    config = small(optim={"accumulation": parts}, train={"ema": 0.9}, **sections)
    trainer = with_network(config, Plain())
    chosen = Chosen("taking", Taking, Taking.Options(kept=kept))
    methods = Composition([chosen], trainer.plan.spec, seed=3, host=trainer)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = methods
    return trainer


def test_a_step_with_nothing_left_changes_no_weight_and_is_counted() -> None:
    trainer, weights, rates = trainer_of(10, 0, 0, 25), [], []
    step = trainer.methods.step

    def spying(changed: bool = True) -> None:
        weights.append([p.detach().clone() for p in trainer.network.parameters()])
        rates.append(trainer.loop.optimizer.param_groups[0]["lr"])
        step(changed)

    object.__setattr__(trainer.methods, "step", spying)
    rows: list[dict[str, Any]] = []
    trainer.loop.run(rows.append)
    same = [all(torch.equal(a, b) for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(weights)]
    # Momentum and weight decay would have moved them.
    assert same == [True, True, False, False, True, True, False]
    assert trainer.methods.run.step == rows[-1]["step"] == 8
    assert len(set(rates)) == 8, "the schedule goes on"
    assert rows[0]["train_loss"] > 0
    assert int(trainer.loop.position.epoch) == 2


def test_the_mean_loss_is_of_what_was_trained_on() -> None:
    losses: list[float] = []
    trainer = trainer_of(5, 0)
    trainer.loop.step_module.register_forward_hook(lambda _, __, output: losses.append(float(output[0].detach())))
    rows: list[dict[str, Any]] = []
    trainer.loop.run(rows.append)
    assert len(losses) == 4
    assert rows[0]["train_loss"] == pytest.approx(sum(losses[:2]) / 2)


def test_an_empty_part_of_a_step_leaves_the_others() -> None:
    # Five parts of five images, of which every step's are kept or not alike.
    trainer = trainer_of(2, 0, parts=5)
    trainer.loop.run(lambda row: None)
    assert trainer.methods.run.step == 8


class TakingInTurn(augury.Method):
    """Keeps so many images of each part of a step."""

    class Options(augury.Options):
        kept: tuple[int, ...]

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.parts: list[augury.Batch] = []

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        batch.take(torch.arange(self.options.kept[len(self.parts) % len(self.options.kept)]))
        self.parts.append(batch)


def mean_gradient(network: torch.nn.Module, parts: list[augury.Batch]) -> list[torch.Tensor]:
    """The gradient of the mean loss over all rows of some parts of a step, in float64."""
    network = copy.deepcopy(network).double()
    images, labels = torch.cat([part.images for part in parts]), torch.cat([part.labels[:, 0] for part in parts])
    loss = torch.nn.functional.cross_entropy(network(images.double()), labels)
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("kept", [(3, 0, 2, 0, 0), (0, 0, 0, 0, 4), (5, 5, 5, 5, 5), (5, 1, 1, 1, 1), (25,)])
def test_gradients_are_the_mean_over_all_rows_left_in_the_step(kept: tuple[int, ...]) -> None:
    parts = len(kept)
    trainer = trainer_of(1, parts=parts)
    chosen = Chosen("taking", TakingInTurn, TakingInTurn.Options(kept=kept))
    methods = Composition([chosen], trainer.plan.spec, seed=3, host=trainer)
    trainer.methods = trainer.loop.methods = trainer.loop.step_module.methods = methods
    checked = []
    optimise = trainer.loop._optimise

    def checking() -> None:
        left = methods["taking"].parts[-parts:]
        wanted = mean_gradient(trainer.network, left)
        for parameter, gradient in zip(trainer.network.parameters(), wanted, strict=True):
            torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-4, atol=1e-7)
        checked.append(sum(map(len, left)))
        optimise()

    trainer.loop._optimise = checking
    rows: list[dict[str, Any]] = []
    trainer.loop.run(rows.append)
    assert checked == [sum(kept)] * 8


def test_the_loss_of_an_epoch_is_the_mean_over_all_rows_left_in_it() -> None:
    trainer = trainer_of(5, 1, 2, 25)
    seen: list[tuple[float, int]] = []
    trainer.loop.step_module.register_forward_hook(
        lambda _, given, output: seen.append((float(output[0].detach()), len(given[0])))
    )
    rows: list[dict[str, Any]] = []
    trainer.loop.run(rows.append)
    first = seen[:4]
    assert [count for _, count in first] == [5, 1, 2, 25]
    assert rows[0]["train_loss"] == pytest.approx(sum(loss * count for loss, count in first) / 33)


def test_gradients_that_no_last_part_summed_are_averaged_over_processes() -> None:
    trainer = trainer_of(5)

    class Two:
        size = 2

        def mean(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor + 1

    trainer.loop.methods.run.ranks = Two()
    for summed, wanted in ((True, 6.0), (False, 8.0)):
        for parameter in trainer.network.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
        trainer.loop._rescale(2.0, summed=summed)
        assert all((p.grad == wanted).all() for p in trainer.network.parameters())


def test_nothing_left_in_a_whole_epoch_is_told() -> None:
    with pytest.raises(augury.AuguryError, match=r"the methods left no image of any batch of this epoch.*batch_size"):
        trainer_of(0).loop.run(lambda row: None)


def test_the_first_batch_with_images_is_the_one_shown() -> None:
    trainer, shown = trainer_of(0, 3), []
    trainer.loop.on_augmented = lambda batch: shown.append(len(batch))
    trainer.loop.run(lambda row: None)
    assert shown == [3]
