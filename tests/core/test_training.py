"""The trainer against loops written by hand, and what a run leaves behind."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.scheduler import create_scheduler_v2
from torch import nn

import augury
from augury import backbones
from augury.config import RunConfig, read_config
from augury.data.datasets import load_dataset
from augury.data.memory import MemoryLoader
from augury.training.plan import make_plan
from augury.training.recorder import read_rows
from augury.training.trainer import Trainer, train

EPOCHS, BATCH, LR = 5, 25, 0.05
ALL = ("resmooth", "dcutmix", "isda", "agmax")


def settings(*methods: str | tuple[str, dict[str, Any]], **optim: Any) -> RunConfig:
    named = [m if isinstance(m, tuple) else (m, {}) for m in methods]
    return read_config(
        {
            "seed": 3,
            "device": "cpu",
            "data": {"images_per_class": 10, "augmented": "crop:1 cutout:3"},
            "optim": {"epochs": EPOCHS, "batch_size": BATCH, "lr": LR, **optim},
            "methods": [{"name": name, "options": options} for name, options in named],
        }
    )


def trained(trainer: Trainer) -> list[float]:
    """The loss of each step as the trainer makes it."""
    losses: list[float] = []
    trainer.loop.step_module.register_forward_hook(lambda _, __, output: losses.append(float(output[0].detach())))
    trainer.methods.pre_train_stage()
    trainer.loop.run(lambda row: None)
    return losses


def batches(trainer: Trainer) -> Iterator[augury.Batch]:
    loader: MemoryLoader = trainer.loop.loader
    return itertools.chain.from_iterable(loader.epoch(epoch) for epoch in range(EPOCHS))


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=EPOCHS, step_on_epochs=False, updates_per_epoch=steps
    )
    return scheduler


def test_without_methods_the_losses_are_those_of_a_plain_timm_loop() -> None:
    plan = make_plan(settings())
    trainer = Trainer(plan)
    network = timm.create_model("resnet20_cifar", num_classes=10, in_chans=1)
    network.load_state_dict(trainer.network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    scheduler = schedule(optimizer, trainer.loop.loader.steps)
    expected = []
    for step, batch in enumerate(batches(trainer)):
        loss = F.cross_entropy(network(batch.images), batch.labels[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step_update(step + 1)
        expected.append(float(loss.detach()))
    assert len(expected) == 20
    assert trained(trainer) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("methods", [("dcutmix", "isda", "agmax"), (("dcutmix", {"prob": 0.5}), "isda")])
def test_the_trainer_and_a_loop_over_compose_give_equal_losses(methods: tuple[Any, ...]) -> None:
    config = settings(*methods)
    trainer = Trainer(make_plan(config))
    network = trainer.plan.build_network()
    network.load_state_dict(trainer.network.state_dict())
    steps = trainer.loop.loader.steps
    own = augury.compose(
        config.named_methods(), num_classes=10, classifier=network.fc, total_steps=EPOCHS * steps, seed=config.seed
    )
    parameters = [*network.parameters(), *own.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    scheduler = schedule(optimizer, steps)
    expected = []
    for step, made in enumerate(batches(trainer)):
        images = made.images.split(BATCH)
        batch = own.batch(images, made.labels[:BATCH, 0])
        own.augment_batch(batch)
        features = network.forward_head(network.forward_features(batch.images), pre_logits=True)
        loss = own.compute_loss(batch, augury.ModelOutput(features, network.fc(features)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        own.step()
        scheduler.step_update(step + 1)
        expected.append(float(loss.detach()))
    assert len(expected) == 20
    assert trained(trainer) == pytest.approx(expected, rel=1e-4)


COMPOSITIONS = [*((name,) for name in ALL), *itertools.combinations(ALL, 2), ALL]


@pytest.mark.parametrize("methods", COMPOSITIONS, ids="+".join)
def test_every_method_every_pair_and_all_four_train_on_digits(methods: tuple[str, ...]) -> None:
    trainer = Trainer(make_plan(settings(*methods, epochs=1)))
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    losses = trained(trainer)
    assert len(losses) == 4
    assert torch.tensor(losses).isfinite().all()
    for name, parameter in trainer.network.named_parameters():
        assert parameter.isfinite().all()
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def test_a_stage_does_not_change_the_network_or_the_other_draws() -> None:
    """Adding a method changes no other one's draws, initial weights or images."""
    alone, beside = Trainer(make_plan(settings("dcutmix"))), Trainer(make_plan(settings("resmooth", "dcutmix")))
    for name, value in alone.network.state_dict().items():
        assert torch.equal(value, beside.network.state_dict()[name])
    beside.methods.pre_train_stage()
    mixed = []
    for trainer in (alone, beside):
        batch = next(trainer.loop.loader.epoch(0))
        trainer.methods.augment_batch(batch)
        mixed.append(batch)
    assert torch.equal(mixed[0].labels, mixed[1].labels)
    assert torch.equal(mixed[0].weights, mixed[1].weights)
    assert torch.equal(mixed[0].indices, mixed[1].indices)


def test_only_trainable_parameters_are_in_the_optimiser() -> None:
    trainer = Trainer(make_plan(settings(*ALL)))
    held = {id(p) for group in trainer.loop.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in [*trainer.network.parameters(), *trainer.methods["agmax"].parameters()]}


def test_a_run_leaves_rows_weights_and_pictures(tmp_path: Path) -> None:
    result = train(settings("dcutmix", "isda", "agmax", epochs=2), tmp_path / "run")
    folder = Path(result.folder)
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [4, 8]
    wanted = {"train_loss", "train_top1", "val_top1", "val_loss", "images_per_second", "isda/lambda", "agmax/entropy"}
    assert wanted <= rows[0].keys()
    assert rows[0]["train_top1"] is None, "no batch was unmixed, so there is nothing to measure it on"
    assert result.last_val_top1 == rows[-1]["val_top1"]
    assert result.best_val_top1 == max(row["val_top1"] for row in rows)
    assert json.loads((folder / "result.json").read_text())["best_epoch"] == result.best_epoch
    assert {p.name for p in (folder / "figures").rglob("*.png")} == {"batch.png"}
    exported = load_file(folder / "last.safetensors")
    network = timm.create_model(
        "resnet20_cifar", num_classes=10, in_chans=1, checkpoint_path=str(folder / "last.safetensors")
    )
    assert exported.keys() == network.state_dict().keys()
    data = load_dataset(settings().data, 32)
    assert data.test is not None
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    with torch.no_grad():
        logits = network.eval()((data.test.images.float() / 255 - mean) / std)
    top1 = 100 * (logits.argmax(1) == data.test.labels).double().mean()
    assert result.last_test_top1 == pytest.approx(float(top1), abs=0.2)


def test_evaluation_asks_no_method(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(make_plan(settings("dcutmix", "isda", "agmax")))
    for hook in ("augment_batch", "compute_loss"):
        monkeypatch.setattr(augury.Composition, hook, lambda *_: pytest.fail("a method was asked"))
    before = {k: v.clone() for k, v in trainer.methods.state_dict().items()}
    found = trainer._evaluate("val")
    assert 0 <= found["val_top1"] <= 100
    assert all(torch.equal(v, before[k]) for k, v in trainer.methods.state_dict().items())


def test_a_model_without_a_linear_classifier_is_refused_for_methods_that_need_one() -> None:
    class Odd(nn.Module):
        num_features = 8

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Linear(8, 10))

    with pytest.raises(augury.UsageError, match=r"isda needs a model whose classifier is one nn.Linear; .* Sequential"):
        augury.compose(["isda"], num_classes=10, classifier=Odd().head, total_steps=5)


def test_features_and_logits_are_the_models_own() -> None:
    for name in ("resnet20_cifar", "test_vit", "test_convnext", "test_efficientnet", "test_nfnet"):
        size = backbones.default_size(name)
        network = timm.create_model(name, num_classes=7).eval()
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            output = backbones.forward(network, images)
            assert torch.equal(output.logits, network(images))
            torch.testing.assert_close(network.get_classifier()(output.features), output.logits)
