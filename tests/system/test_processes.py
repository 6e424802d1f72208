"""Two processes on halves of a batch train as one does on the whole: losses, gradients, weights, methods' state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import augury
from augury.batch import Batch
from augury.training.step import Step

STEPS, IMAGES, CLASSES = 8, 12, 5
COMPOSITION = ["dcutmix", ("isda", {"lambda_0": 2.0}), ("agmax", {"n_units": 8})]


class Network(nn.Module):
    """A small network without batch normalisation, whose statistics are of each process alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(6, CLASSES)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


def composed(network: Network) -> augury.Composition:
    return augury.compose(COMPOSITION, num_classes=CLASSES, classifier=network.fc, total_steps=STEPS)


def augmented_batches() -> list[Batch]:
    """What one process makes of the whole batches."""
    torch.manual_seed(0)
    methods = composed(Network())
    batches = []
    for _ in range(STEPS):
        views = (torch.randn(IMAGES, 1, 8, 8), torch.randn(IMAGES, 1, 8, 8))
        batch = methods.batch(views, torch.randint(0, CLASSES, (IMAGES,)))
        batch.smoothing = torch.rand_like(batch.smoothing) * 0.3
        methods.augment_batch(batch)
        methods.step()
        batches.append(batch)
    return batches


def part(batch: Batch, rank: int, size: int) -> Batch:
    """This process's images, in every view."""
    n = IMAGES // size
    rows = torch.cat([torch.arange(n) + view * IMAGES + rank * n for view in range(batch.views)])
    tensors = {name: value[rows] for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return Batch(**tensors, views=batch.views, pipelines=batch.pipelines)


def train(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # Before the processes know of each other: each makes the same whole batches.
    batches = augmented_batches()
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.manual_seed(1)
    network = Network()
    methods = composed(network)
    step: nn.Module = Step(network, methods)
    if size > 1:
        step = DistributedDataParallel(step, broadcast_buffers=False)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.2, momentum=0.9)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for batch in batches:
        loss, _ = step(part(batch, rank, size))
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in [*network.named_parameters(), *methods.named_parameters()]}
        optimizer.step()
        optimizer.zero_grad()
        methods.step()
        losses.append(float(methods.run.ranks.mean(loss.detach())))
    found: dict[str, Any] = {"losses": torch.tensor(losses), "gradients": gradients}
    found |= {"network": network.state_dict(), "methods": dict(methods.state_dict())}
    torch.save(found, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    train(0, 1, folder)
    mp.spawn(train, args=(2, folder), nprocs=2)
    return [torch.load(folder / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]


@pytest.mark.parametrize("part", ["losses", "gradients", "network", "methods"])
def test_two_processes_give_what_one_gives(results: list[dict[str, Any]], part: str) -> None:
    one, *both = results
    for found in both:
        torch.testing.assert_close(found[part], one[part], rtol=1e-5, atol=1e-5)


def test_the_run_was_one_worth_comparing(results: list[dict[str, Any]]) -> None:
    one = results[0]
    assert one["losses"].isfinite().all()
    assert {"methods.isda.covariance", "methods.isda.count", "step"} <= one["methods"].keys()
    assert any("agmax" in name for name in one["methods"])
    assert one["methods"]["methods.isda.count"].sum() == pytest.approx(2 * IMAGES * STEPS)
    assert all(gradient.abs().sum() > 0 for gradient in one["gradients"].values())
