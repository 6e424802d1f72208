"""The trainer against loops written by hand, and what a run leaves behind."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.train.small_runs import (
    Plain,
    by_hand,
    losses_of,
    rows_of,
    small,
    with_network,
)
from timm.scheduler import create_scheduler_v2
from torch import nn

import augury
from augury_train import backbones
from augury_train.training.plan import make_plan
from augury_train.training.recorder import read_rows
from augury_train.training.result import read_result
from augury_train.training.trainer import Trainer, train

ALL = ("resmooth", "dcutmix", "isda", "agmax")
LONG = {"epochs": 5}


def sgd(*modules: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)


def cosine(optimizer: torch.optim.Optimizer, trainer: Trainer) -> Callable[[int], None]:
    """timm's schedule as it is stepped after each optimiser step."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=trainer.config.optim.epochs,
        step_on_epochs=False,
        updates_per_epoch=trainer.loop.loader.steps,
    )
    return scheduler.step_update


def equal(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_without_methods_the_losses_are_those_of_a_plain_timm_loop() -> None:
    trainer = Trainer(make_plan(small(optim=LONG)))
    network = copy.deepcopy(trainer.network)
    optimizer = sgd(network)
    expected = by_hand(
        trainer,
        network,
        optimizer,
        lambda batch: F.cross_entropy(network(batch.images), batch.labels[:, 0]),
        after=cosine(optimizer, trainer),
    )
    assert len(expected) == 20
    # The criterion sums in another order, so the last bit differs, and over the steps the next.
    assert losses_of(trainer) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("methods", [("dcutmix", "isda", "agmax"), (("dcutmix", {"prob": 0.5}), "isda")])
def test_the_trainer_and_a_loop_over_compose_give_equal_losses(methods: tuple[Any, ...]) -> None:
    config = small(*methods, optim=LONG)
    trainer = Trainer(make_plan(config))
    network = copy.deepcopy(trainer.network)
    total = config.optim.epochs * trainer.loop.loader.steps
    own = augury.compose(
        config.named_methods(), num_classes=10, classifier=network.fc, total_steps=total, seed=config.seed
    )
    optimizer = sgd(network, own)
    schedule = cosine(optimizer, trainer)

    def loss_of(made: augury.Batch) -> torch.Tensor:
        images = made.images.split(config.optim.batch_size)
        batch = own.batch(images, made.labels[: config.optim.batch_size, 0])
        own.augment_batch(batch)
        features = network.forward_head(network.forward_features(batch.images), pre_logits=True)
        return own.compute_loss(batch, augury.ModelOutput(features, network.fc(features)))

    def after(step: int) -> None:
        own.step()
        schedule(step)

    expected = by_hand(trainer, network, optimizer, loss_of, after)
    assert len(expected) == 20
    assert losses_of(trainer) == pytest.approx(expected, rel=1e-4)


COMPOSITIONS = [*((name,) for name in ALL), *itertools.combinations(ALL, 2), ALL]


@pytest.mark.parametrize("methods", COMPOSITIONS, ids="+".join)
def test_every_method_every_pair_and_all_four_train_on_digits(methods: tuple[str, ...]) -> None:
    trainer = Trainer(make_plan(small(*methods, optim={"epochs": 1})))
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    losses = losses_of(trainer)
    assert len(losses) == 4
    assert torch.tensor(losses).isfinite().all()
    for name, parameter in trainer.network.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def test_a_stage_does_not_change_the_network_or_the_other_draws() -> None:
    """Adding a method changes no other one's draws, initial weights or images."""
    alone, beside = Trainer(make_plan(small("dcutmix"))), Trainer(make_plan(small("resmooth", "dcutmix")))
    for name, value in alone.network.state_dict().items():
        assert torch.equal(value, beside.network.state_dict()[name])
    beside.methods.pre_train_stage()
    mixed = []
    for trainer in (alone, beside):
        batch = next(trainer.loop.loader.epoch(0))
        trainer.methods.augment_batch(batch)
        mixed.append(batch)
    assert torch.equal(mixed[0].labels, mixed[1].labels)
    assert torch.equal(mixed[0].shares, mixed[1].shares)
    assert torch.equal(mixed[0].indices, mixed[1].indices)


def test_only_trainable_parameters_are_in_the_optimiser() -> None:
    trainer = Trainer(make_plan(small(*ALL)))
    held = {id(p) for group in trainer.loop.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in [*trainer.network.parameters(), *trainer.methods["agmax"].parameters()]}


# Accumulation.


def test_accumulated_parts_make_the_gradient_and_the_steps_of_the_whole_batch() -> None:
    network = Plain()
    optim = {"batch_size": 24, "epochs": 2}
    whole = with_network(small(optim=optim), network)
    parts = with_network(small(optim={**optim, "accumulation": 2}), network)
    one, two = losses_of(whole), losses_of(parts)
    assert len(one) == 8
    assert len(two) == 16
    halves = zip(two[::2], two[1::2], strict=True)
    assert [(a + b) / 2 for a, b in halves] == pytest.approx(one, rel=1e-4)
    for key, value in whole.network.state_dict().items():
        torch.testing.assert_close(parts.network.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    assert whole.methods.run.step == parts.methods.run.step == 8, "methods count optimiser steps"


def test_the_schedule_counts_optimiser_steps_under_accumulation() -> None:
    rates: list[list[float]] = []
    for accumulation in (1, 3):
        trainer = with_network(small(optim={"batch_size": 24, "accumulation": accumulation}), Plain())
        seen: list[float] = []
        trainer.loop.optimizer.optimizer.register_step_pre_hook(
            lambda held, *_, into=seen: into.append(held.param_groups[0]["lr"])
        )
        losses_of(trainer)
        rates.append(seen)
    assert len(rates[0]) == 8
    assert rates[0] == rates[1]


# The moving average.


class Normed(Plain):
    """With statistics, which are averaged as the weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.tanh(self.norm(self.stem(images.flatten(1)))))


@pytest.mark.parametrize(("kind", "warmup"), [(Plain, False), (Plain, True), (Normed, False)])
def test_the_average_has_the_decay_that_was_set_is_measured_beside_the_network_and_exported(
    kind: type[Plain], warmup: bool, tmp_path: Path
) -> None:
    decay = 0.7
    trainer = with_network(small(train={"ema": decay, "ema_warmup": warmup, "trackers": []}), kind())
    average: dict[str, torch.Tensor] = {}
    rates = []

    def update(step: int) -> None:
        rate = min(decay, 1 - step ** (-2 / 3)) if warmup else decay
        rates.append(rate)
        for key, value in trainer.network.state_dict().items():
            # It begins with the weights after the first step; counts are not averaged.
            before = average.get(key, value).double()
            counts = not value.is_floating_point()
            average[key] = value.double() if counts else rate * before + (1 - rate) * value.double()

    optimise = trainer.loop._optimise

    def both() -> None:
        optimise()
        update(trainer.methods.run.step)

    trainer.loop._optimise = both  # type: ignore[method-assign]
    result = trainer.run(tmp_path / "run")
    assert len(rates) == 8
    assert rates[1] == (pytest.approx(1 - 2 ** (-2 / 3)) if warmup else decay)
    assert rates[-1] == decay, "the warm-up of the decay reached what was set"
    exported = load_file(tmp_path / "run" / "last.safetensors")
    for key, value in average.items():
        torch.testing.assert_close(exported[key].double(), value, rtol=1e-5, atol=1e-6)
        now = trainer.network.state_dict()[key]
        assert torch.equal(exported[key], now) != now.is_floating_point()
    rows = rows_of(tmp_path / "run")
    assert {"val_top1", "val_loss", "val_ema_top1", "val_ema_loss"} <= rows[0].keys()
    assert rows[-1]["val_loss"] != rows[-1]["val_ema_loss"]
    assert result.weights == "ema"
    assert result.last["val"].top1 == rows[-1]["val_ema_top1"]
    assert result.best["val"].top1 == max(row["val_ema_top1"] for row in rows)
    assert _metadata(tmp_path / "run" / "last.safetensors")["weights"] == "ema"


@pytest.mark.parametrize("every", ["step", "epoch"])
def test_the_rate_of_a_row_is_that_of_the_epochs_last_step(every: str) -> None:
    trainer = with_network(small(schedule={"every": every}), Plain())
    used: list[float] = []
    trainer.loop.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"])
    )
    rows: list[dict[str, Any]] = []
    trainer.loop.run(rows.append)
    assert [row["lr"] for row in rows] == [used[3], used[7]]
    # A half cosine over 8 steps, or over 2 epochs.
    part = 7 / 8 if every == "step" else 1 / 2
    assert rows[-1]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * part)) / 2)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


# Frozen stages.


def test_frozen_stages_keep_weights_and_statistics_and_the_others_move() -> None:
    trainer = Trainer(make_plan(small(model={"frozen_stages": 2}, train={"ema": 0.5})))
    before = copy.deepcopy(trainer.network.state_dict())
    losses_of(trainer)
    for network in (trainer.network, trainer.loop.result):
        for key, value in network.state_dict().items():
            kept = key.startswith(("conv1", "bn1", "layer1"))
            assert torch.equal(value, before[key]) == kept, key
    held = [p for group in trainer.loop.optimizer.param_groups for p in group["params"]]
    assert all(p.requires_grad for p in held)


# Protocols, precision, layout, compilation.


def test_the_papers_protocol_trains_on_all_images_and_reports_on_the_test_split(tmp_path: Path) -> None:
    config = small(data={"protocol": "paper", "images_per_class": None}, optim={"batch_size": 128, "epochs": 1})
    plan = make_plan(config)
    assert plan.data.splits.val is None
    assert plan.data.splits.test is not None
    assert len(plan.data.splits.train) + len(plan.data.splits.test) == 1797
    result = Trainer(plan).run(tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert {"test_top1", "test_loss"} <= rows[0].keys()
    assert not [key for key in rows[0] if key.startswith("val")]
    assert result.chosen_on == "test"
    assert "val" not in result.best
    assert "val" not in result.last
    assert result.last["test"].top1 == rows[-1]["test_top1"]


def test_trainings_of_different_precision_follow_each_other_in_one_process() -> None:
    losses, kinds = [], []
    for precision in ("fp32", "bf16", "fp32"):
        trainer = Trainer(make_plan(small("isda", "agmax", optim={"epochs": 1}, train={"precision": precision})))
        compute = trainer.methods.compute_loss

        def spying(batch: augury.Batch, output: augury.ModelOutput, compute: Any = compute) -> torch.Tensor:
            loss = compute(batch, output)
            kinds.append((output.logits.dtype, loss.dtype))
            return loss

        trainer.methods.compute_loss = spying  # type: ignore[method-assign]
        losses.append(losses_of(trainer))
    steps = len(losses[0])
    assert [kind for kind, _ in kinds[::steps]] == [torch.float32, torch.bfloat16, torch.float32]
    assert {loss for _, loss in kinds} == {torch.float32}
    assert losses[0] == losses[2]
    assert losses[1] != losses[0]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.02)


def test_channels_last_changes_the_layout_and_not_the_result() -> None:
    plain, other = (Trainer(make_plan(small(train={"channels_last": last}))) for last in (False, True))
    assert other.network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert losses_of(other) == pytest.approx(losses_of(plain), rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_trains_to_the_same_losses() -> None:
    network, losses = Plain(), []
    for compiled in (False, True):
        trainer = with_network(small(train={"compile": compiled}), network)
        losses.append(losses_of(trainer))
        assert list(trainer.network.state_dict()) == list(network.state_dict()), "the weights keep their names"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


# What a run leaves behind.


def test_a_run_leaves_rows_weights_and_pictures(tmp_path: Path) -> None:
    result = train(small("dcutmix", "isda", "agmax"), tmp_path / "run")
    folder = Path(result.folder)
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [4, 8]
    wanted = {"train_loss", "train_top1", "val_top1", "val_loss", "images_per_second", "isda/lambda", "agmax/entropy"}
    assert wanted <= rows[0].keys()
    assert rows[0]["train_top1"] is None, "no batch was unmixed, so there is nothing to measure it on"
    assert rows[0]["train_top1_share"] == 0
    assert result.weights == "raw"
    assert result.last["val"].top1 == rows[-1]["val_top1"]
    assert result.best["val"].top1 == max(row["val_top1"] for row in rows)
    assert read_result(folder) == result
    assert {p.name for p in (folder / "figures").rglob("*.png")} == {"batch.png"}
    exported = load_file(folder / "last.safetensors")
    network = timm.create_model(
        "resnet20_cifar", num_classes=10, in_chans=1, checkpoint_path=str(folder / "last.safetensors")
    )
    assert exported.keys() == network.state_dict().keys()
    data = make_plan(small()).data
    assert data.splits.test is not None
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.format.mean, data.format.std))
    with torch.no_grad():
        logits = network.eval()((data.pixels(data.splits.test).float() / 255 - mean) / std)
    top1 = 100 * (logits.argmax(1) == data.splits.test.labels).double().mean()
    assert result.last["test"].top1 == pytest.approx(float(top1), abs=0.2)


def test_training_accuracy_is_that_of_the_unmixed_rows() -> None:
    trainer = Trainer(make_plan(small(("dcutmix", {"prob": 0.5}), optim=LONG)))
    correct, unmixed, rows_seen, found = 0, 0, 0, []

    def count(_: nn.Module, inputs: tuple[augury.Batch], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        nonlocal correct, unmixed, rows_seen
        batch, logits = inputs[0], output[1]
        rows_seen += len(batch.images)
        if batch.shares.shape[1] == 1:
            unmixed += len(batch.images)
            correct += int((logits.argmax(1) == batch.labels[:, 0]).sum())

    trainer.loop.step_module.register_forward_hook(count)

    def end(row: dict[str, Any]) -> None:
        nonlocal correct, unmixed, rows_seen
        expected = 100 * correct / unmixed if unmixed else None
        found.append((row["train_top1"] == expected, row["train_top1_share"] == unmixed / rows_seen, unmixed))
        correct = unmixed = rows_seen = 0

    trainer.loop.run(end)
    assert all(top1 and share for top1, share, _ in found)
    assert 0 < sum(count for *_, count in found) < 5 * 100, "some batches were mixed and some not"


def test_evaluation_asks_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make_plan(small("dcutmix", "isda", "agmax")))
    for hook in ("augment_batch", "compute_loss"):
        monkeypatch.setattr(augury.Composition, hook, lambda *_: pytest.fail("a method was asked"))
    before = {k: v.clone() for k, v in trainer.methods.state_dict().items()}
    found = trainer._evaluate("val", trainer.network)
    assert 0 <= found["top1"] <= 100
    assert all(torch.equal(v, before[k]) for k, v in trainer.methods.state_dict().items())


# Classifiers.


def test_a_model_without_a_linear_classifier_is_refused_for_methods_that_need_one() -> None:
    head = nn.Sequential(nn.Linear(8, 10))
    with pytest.raises(augury.UsageError, match=r"isda needs a model whose classifier is one nn.Linear; .* Sequential"):
        augury.compose(["isda"], num_classes=10, classifier=head, total_steps=5)


def test_features_and_logits_are_the_models_own() -> None:
    for name in ("resnet20_cifar", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"):
        size = backbones.data_config(name)["input_size"][-1]
        network = timm.create_model(name, num_classes=7).eval()
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            output = augury.forward(network, augury.Batch.of(images, torch.zeros(2)))
            assert torch.equal(output.logits, network(images))
            torch.testing.assert_close(network.get_classifier()(output.features), output.logits)
