"""A small frozen network, and compositions and batches to try ReSmooth with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import augury
from augury.choice import Chosen
from augury.composition import Composition
from augury_resmooth import ReSmooth
from augury_resmooth.functional import Mixture

C, SIDE, BASE, AUGMENTED = 4, 3, 0, 1
MIXTURE = Mixture((0.6, 0.4), (-1.2, 0.3), (0.8, 0.3))


class Network(nn.Module):
    """A classifier whose output shows at once whether it is in training mode, or is one row of it changed."""

    def __init__(self, classes: int = C) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(SIDE * SIDE, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.drop(self.norm(images)).flatten(1))


def trained(seed: int = 0) -> Network:
    """A network with weights and running statistics of its own, in evaluation mode."""
    torch.manual_seed(seed)
    network = Network()
    for _ in range(5):
        network(2 + 3 * torch.randn(64, 1, SIDE, SIDE))
    with torch.no_grad():
        network.fc.weight *= 4
    return network.eval()


def composed(*after: Any, network: nn.Module | None = None, **options: Any) -> augury.Composition:
    given = {"frozen": network or trained(), "mixture": MIXTURE, **options}
    return augury.compose([(ReSmooth, given), *after], num_classes=C)


def with_builder(build: Any = Network, **options: Any) -> Composition:
    """The composition as the trainer makes it, which can build networks."""
    spec = augury.Spec(num_classes=C, build_network=build)
    return Composition([Chosen("resmooth", ReSmooth, ReSmooth.Options(**options))], spec)


def make_batch(methods: augury.Composition, pipeline: list[int], seed: int = 1) -> augury.Batch:
    generator = torch.Generator().manual_seed(seed)
    n = len(pipeline) // methods.views
    views = [2 + 3 * torch.randn(n, 1, SIDE, SIDE, generator=generator) for _ in range(methods.views)]
    labels = torch.randint(C, (n,), generator=generator)
    return methods.batch(views, labels, pipeline=torch.tensor(pipeline))


def pattern(rows: int, base_rows: int) -> list[int]:
    return torch.randperm(rows).ge(base_rows).long().tolist()
