"""Class weights beside methods that mix: a class's weight is of its label, in one process and in two."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp

import augury
from augury.batch import Batch
from augury_train.config import TrainConfig
from augury_train.training.labels import LabelPolicy

RARE = 1
TRAINING = torch.tensor([0] * 900 + [RARE] * 100)


def policy(labels: Tensor = TRAINING, classes: int = 2, **settings: Any) -> LabelPolicy:
    return LabelPolicy(TrainConfig(class_weights="balanced", **settings), labels, classes, torch.device("cpu"))


def rare_share(rows: int, seed: int, **options: Any) -> float:
    """The rare class's part of all that labels weigh in the loss, over batches of one mixed epoch."""
    methods = augury.compose([("dcutmix", options)], num_classes=2, seed=seed)
    prepare, order = policy().prepare, TRAINING[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))]
    rare = total = 0.0
    for labels in order.split(rows):
        batch = methods.batch(torch.zeros(rows, 1, 8, 8), labels)
        prepare(batch)
        methods.augment_batch(batch)
        assert batch.labels.shape[1] == options["k"]
        weight = batch.row_weights[:, None] * batch.shares * batch.label_weights
        rare, total = rare + float(weight[batch.labels == RARE].sum()), total + float(weight.sum())
        methods.step()
    return rare / total


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.2), (2, 0.2), (5, 1.0)])
def test_balanced_classes_weigh_the_same_however_rows_are_mixed(k: int, alpha: float) -> None:
    """Weights of whole rows, averaged with the rows, gave the rare class 0.23 to 0.38."""
    found = torch.tensor([rare_share(100, seed, k=k, alpha=alpha) for seed in range(12)], dtype=torch.float64)
    error = float(found.std()) / len(found) ** 0.5
    assert error < 0.01
    assert float(found.mean()) == pytest.approx(0.5, abs=4 * error + 0.005)


# Two processes.

CLASSES, FEATURES, ROWS, STEPS = 3, 4, 6, 3
LABELS = torch.tensor([0] * 8 + [1] * 3 + [2])


def composed(*methods: Any, classifier: nn.Linear, ranks: augury.Ranks | None = None) -> augury.Composition:
    facts: dict[str, Any] = {"num_classes": CLASSES, "total_steps": STEPS, "steps_per_epoch": 1, "seed": 5}
    return augury.compose(methods, classifier=classifier, ranks=ranks, **facts).double()


def classifier() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(FEATURES, CLASSES).double()


def features_of(rank: int, step: int) -> Tensor:
    return torch.randn(ROWS, FEATURES, generator=torch.Generator().manual_seed(10 * rank + step), dtype=torch.float64)


def work(rank: int, folder: Path) -> None:
    """Three steps with the mixing of each process; what its batches, losses and gradients are."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    fc = classifier()
    methods = composed(("dcutmix", {"k": 3}), ("isda", {"lambda_0": 2.0}), classifier=fc)
    prepare, found = policy(LABELS, CLASSES, label_smoothing=0.1).prepare, []
    for step in range(STEPS):
        labels = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(step))]
        batch = methods.batch(torch.zeros(ROWS, 1, 4, 4), labels[rank * ROWS :][:ROWS])
        prepare(batch)
        methods.augment_batch(batch)
        features = features_of(rank, step).requires_grad_()
        fc.zero_grad()
        loss = methods.compute_loss(batch, augury.ModelOutput(features, fc(features)))
        loss.backward()
        # As DistributedDataParallel does.
        mean = methods.run.ranks.mean
        gradient = mean(fc.weight.grad)
        told = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        fields = {name: value for name, value in told.items() if isinstance(value, Tensor)}
        found.append((fields, mean(loss.detach()), gradient, features.grad / 2))
        methods.step()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_are_one_on_the_joined_rows(tmp_path: Path) -> None:
    mp.spawn(work, args=(tmp_path,), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    fc = classifier()
    methods = composed(("isda", {"lambda_0": 2.0}), classifier=fc)
    for step, ((fields, loss, gradient, own), (others, loss_there, gradient_there, theirs)) in enumerate(
        zip(*both, strict=True)
    ):
        joined = Batch(**{name: torch.cat([value, others[name]]) for name, value in fields.items()})
        assert len(joined.label_weights.unique()) == 3
        assert joined.labels.shape == (2 * ROWS, 3)
        features = torch.cat([features_of(rank, step) for rank in (0, 1)]).requires_grad_()
        fc.zero_grad()
        expected = methods.compute_loss(joined, augury.ModelOutput(features, fc(features)))
        expected.backward()
        for mine in (loss, loss_there):
            torch.testing.assert_close(mine, expected.detach())
        for mine in (gradient, gradient_there):
            torch.testing.assert_close(mine, fc.weight.grad)
        torch.testing.assert_close(torch.cat([own, theirs]), features.grad)
        if step:
            assert methods["isda"].covariance.any(), "the logits are conditional ones"
        methods.step()
