"""Two processes on halves of a batch train as one does on the whole: losses, gradients, weights, methods' state."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

import augury
from augury.batch import Batch
from augury_train.backbones.sync_bn import synchronised
from augury_train.config import read_config
from augury_train.data.loader import share_of_split
from augury_train.measures import average_statistics, gather_logits, logits_of, measure, top1_and_loss
from augury_train.training.built import Built
from augury_train.training.plan import make_plan
from augury_train.training.step import Step

# What one method does in two processes, its own tests ask in `make test`.
pytestmark = pytest.mark.slow

STEPS, IMAGES, CLASSES = 20, 12, 5
HELD_OUT = 7
MIXTURE = {"weights": (0.5, 0.5), "means": (0.2, 1.0), "variances": (0.1, 0.2)}


class Network(nn.Module):
    """A small network with batch normalisation of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        # The layer before the first norm has no bias: its gradient would be rounding alone.
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3, bias=False), BatchNormAct2d(6), nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)
        )
        self.pool = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(8, CLASSES)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.pool(self.body(images)))


def mixing(network: Network) -> augury.Composition:
    methods = ["dcutmix", ("isda", {"lambda_0": 2.0}), ("agmax", {"n_units": 8})]
    return augury.compose(methods, num_classes=CLASSES, classifier=network.fc, total_steps=STEPS)


def smoothing(network: Network) -> augury.Composition:
    torch.manual_seed(7)
    frozen = Network()
    options = {"prob": 0.5, "frozen": frozen, "mixture": MIXTURE}
    methods: list[Any] = [("resmooth", options), ("isda", {"lambda_0": 2.0}), ("agmax", {"n_units": 8})]
    return augury.compose(methods, num_classes=CLASSES, classifier=network.fc, total_steps=STEPS)


COMPOSITIONS: dict[str, Callable[[Network], augury.Composition]] = {"mixing": mixing, "smoothing": smoothing}


def whole_batches(name: str) -> list[Batch]:
    """What one process makes of the whole batches. Of `smoothing` nothing is drawn, so that it is left to each process:
    what it measures of its rows is what all measure of all."""
    torch.manual_seed(0)
    methods = COMPOSITIONS[name](Network())
    batches = []
    for _ in range(STEPS):
        views = (torch.randn(IMAGES, 1, 8, 8), torch.randn(IMAGES, 1, 8, 8))
        # A different number of base rows in each half.
        pipeline = (torch.arange(2 * IMAGES) % IMAGES >= 4).long() if name == "smoothing" else None
        batch = methods.batch(views, torch.randint(0, CLASSES, (IMAGES,)), pipeline=pipeline)
        batch.smoothing = torch.rand_like(batch.smoothing) * 0.3
        if name == "mixing":
            methods.augment_batch(batch)
        methods.step()
        batches.append(batch)
    return batches


def part(batch: Batch, rank: int, size: int) -> Batch:
    """This process's images, in every view."""
    n = IMAGES // size
    rows = torch.cat([torch.arange(n) + view * IMAGES + rank * n for view in range(batch.views)])
    tensors = {name: value[rows].clone() for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return Batch(**tensors, views=batch.views, pipelines=batch.pipelines)


def train(name: str, batches: list[Batch], rank: int, size: int) -> dict[str, Any]:
    torch.manual_seed(1)
    network = Network()
    names = network.state_dict().keys()
    synchronised(network, augury.Ranks())
    assert network.state_dict().keys() == names
    methods = COMPOSITIONS[name](network)
    step: nn.Module = Step(network, methods)
    if size > 1:
        step = DistributedDataParallel(step, broadcast_buffers=False)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9)
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}
    for whole in batches:
        batch = part(whole, rank, size)
        if name == "smoothing":
            methods.augment_batch(batch)
        loss, _ = step(batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in [*network.named_parameters(), *methods.named_parameters()]}
        optimizer.step()
        optimizer.zero_grad()
        methods.step()
        losses.append(float(methods.run.ranks.mean(loss.detach())))
    found: dict[str, Any] = {"losses": torch.tensor(losses), "gradients": gradients}
    return found | {"network": network.state_dict(), "methods": dict(methods.state_dict())}


def normalise_in_float64(rank: int, size: int) -> dict[str, Any]:
    """BatchNorm's outputs, gradients and running statistics, where its means are far from 0."""
    torch.manual_seed(2)
    layers = nn.Sequential(
        nn.BatchNorm2d(3), BatchNormAct2d(3), nn.Flatten(), nn.BatchNorm1d(48, momentum=None), nn.BatchNorm1d(48)
    ).double()
    synchronised(layers, augury.Ranks())
    inputs = 1e3 + torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    weights = torch.randn(6, 48, dtype=torch.float64)
    mine = slice(rank * 6 // size, (rank + 1) * 6 // size)
    outputs, gradients = [], []
    for images in inputs:
        rows = images[mine].clone().requires_grad_()
        out = layers(rows)
        # The mean over processes of their losses is the loss.
        (out * weights[mine]).sum().mul(size).div(6).backward()
        outputs.append(augury.Ranks().gather_rows(out))
        gradients.append(augury.Ranks().gather_rows(rows.grad) / size)
    own = {name: augury.Ranks().mean(p.grad) for name, p in layers.named_parameters()}
    in_evaluation = layers.eval()(inputs[0])
    return {
        "outputs": outputs,
        "inputs'": gradients,
        "parameters'": own,
        "statistics": layers.state_dict(),
        "eval": in_evaluation,
    }


def evaluate_share(rank: int, size: int) -> dict[str, Any]:
    """Of seven images each is counted once, and all processes measure one network."""
    torch.manual_seed(3)
    network = Network()
    ranks = augury.Ranks()
    with torch.no_grad():
        for buffer in (network.body[1].running_mean, network.body[3].running_mean):
            # Their mean is what one process has.
            buffer.copy_(torch.randn_like(buffer) + (rank - 0.5 if size > 1 else 0))
    average_statistics(network, ranks)
    pixels, labels = torch.randn(HELD_OUT, 1, 8, 8), torch.randint(0, CLASSES, (HELD_OUT,))
    numbers, counts = share_of_split(HELD_OUT, ranks)
    rows = labels[numbers].where(counts, -100)
    mine = list(zip(pixels[numbers].split(3), rows.split(3), strict=True))
    logits, answers = logits_of(network, mine, lambda images: images)
    whole = gather_logits(logits, answers, ranks, torch.device("cpu"))
    return {
        "sums": top1_and_loss(network, mine, lambda images: images, ranks),
        "measures": vars(measure(*whole)),
        "logits": whole[0],
        "labels": whole[1],
    }


def stage() -> dict[str, Any]:
    """The network and the mixture of a real run's pre-train stage, on images that two processes cannot share evenly."""
    config = read_config(
        {
            "device": "cpu",
            "data": {"augmented": "randaugment crop:1 flip", "test_fraction": 0.9},
            "model": {"name": "test_resnet"},
            "optim": {"batch_size": 20, "epochs": 1, "lr": 0.02},
            "train": {"sync_bn": True, "trackers": []},
            "methods": [{"name": "resmooth", "options": {}}],
        }
    )
    plan = make_plan(config)
    built = Built(plan)
    built.methods.pre_train_stage()
    assert len(plan.data.splits.train) % 2
    state = built.methods.state_dict()
    return {name: value for name, value in state.items() if "weights" in name or "means" in name or "frozen" in name}


def work(rank: int, size: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    # Before the processes know of each other: each makes the same whole batches.
    batches = {name: whole_batches(name) for name in COMPOSITIONS}
    if size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo")
    found: dict[str, Any] = {name: train(name, batches[name], rank, size) for name in COMPOSITIONS}
    found["float64"] = normalise_in_float64(rank, size)
    found["share"] = evaluate_share(rank, size)
    found["stage"] = stage()
    torch.save(found, folder / f"{size}-{rank}.pt")
    if size > 1:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process found, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = torch.get_num_threads()
    work(0, 1, folder, port)
    torch.set_num_threads(threads)
    mp.spawn(work, args=(2, folder, port), nprocs=2)
    return [torch.load(folder / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt")]


@pytest.mark.parametrize("part", ["losses", "gradients", "network", "methods"])
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_two_processes_give_what_one_gives(results: list[dict[str, Any]], composition: str, part: str) -> None:
    one, *both = (found[composition][part] for found in results)
    for found in both:
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_run_was_one_worth_comparing(results: list[dict[str, Any]], composition: str) -> None:
    one = results[0][composition]
    assert one["losses"].isfinite().all()
    assert {"methods.isda.covariance", "methods.isda.count", "step"} <= one["methods"].keys()
    assert any("agmax" in name for name in one["methods"])
    assert one["methods"]["methods.isda.count"].sum() == pytest.approx(2 * IMAGES * STEPS)
    assert all(gradient.abs().sum() > 0 for gradient in one["gradients"].values())
    if composition == "smoothing":
        judged = one["methods"]["methods.resmooth.judged"]
        assert (judged > 0).all(), "some rows are in distribution and some out of it"


def test_synchronised_batchnorm_is_one_process_of_float64(results: list[dict[str, Any]]) -> None:
    one, *both = (found["float64"] for found in results)
    for found in both:
        torch.testing.assert_close(found, one, rtol=1e-10, atol=1e-10)


def test_every_held_out_image_counts_once(results: list[dict[str, Any]]) -> None:
    one, *both = (found["share"] for found in results)
    assert len(one["labels"]) == HELD_OUT
    for found in both:
        torch.testing.assert_close(found, one, rtol=1e-6, atol=1e-6)


def test_a_stage_makes_in_two_processes_what_it_makes_in_one(results: list[dict[str, Any]]) -> None:
    one, *both = (found["stage"] for found in results)
    assert "methods.resmooth.means" in one
    for found in both:
        torch.testing.assert_close(found, one, rtol=1e-5, atol=1e-5)


def test_batchnorm_that_cannot_be_synchronised_is_named() -> None:
    class Two(augury.Ranks):
        def __init__(self) -> None:
            super().__init__()
            self.size = 2

    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm3d(2))
    with pytest.raises(augury.UsageError, match="layer `1` of the network is a BatchNorm3d"):
        synchronised(network, Two())
    fine = Network()
    assert synchronised(fine, augury.Ranks()) is fine
    assert type(fine.body[3]) is nn.BatchNorm2d
