"""AgMax's loss in percent of a ResNet-18 step, the second view's own forward and backward pass left out."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F

import augury
from augury_agmax import AgMax

N, CLASSES, REPEATS = 128, 100, 9
LOSSES = 10


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)


def network_step() -> Callable[[], None]:
    """A step of the network alone, on one view: forward, backward, SGD."""
    network = timm.create_model("resnet18", num_classes=CLASSES)
    optimizer = sgd(network.parameters())
    images, labels = torch.randn(N, 3, 32, 32), torch.randint(CLASSES, (N,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def loss_steps() -> Callable[[], None]:
    """Several times all that follows two views' logits: loss, backward to the logits, SGD on the Q-network."""
    methods = augury.compose([AgMax], num_classes=CLASSES)
    view, labels = torch.zeros(N, 3, 1, 1), torch.randint(CLASSES, (N,))
    batch = methods.batch((view, view), labels)
    features, logits = torch.randn(2 * N, 512), torch.randn(2 * N, CLASSES, requires_grad=True)
    optimizer = sgd(methods.parameters())

    def step() -> None:
        for _ in range(LOSSES):
            logits.grad = None
            optimizer.zero_grad()
            methods.compute_loss(batch, augury.ModelOutput(features, logits)).backward()
            optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def bench() -> list[dict[str, Any]]:
    """One row. The criterion's cross-entropy of both views and the Q-network's optimiser are counted in."""
    torch.manual_seed(0)
    # Short parallel regions would wait for whatever else the machine does.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = (loss_steps(), network_step())
    times = [[seconds(step) for step in steps] for _ in range(REPEATS + 2)][2:]
    torch.set_num_threads(threads)
    loss, network = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    loss /= LOSSES
    return [
        {
            "what": f"AgMax's loss, without the second view's forward, {N} images 3×32×32, C={CLASSES}",
            "ratio": 100 * loss / network,
            "unit": "% of a ResNet-18 step",
            "at_most": 2.0,
            "detail": f"{loss:.2f} ms beside {network:.0f} ms, median of {REPEATS}, 1 thread",
        }
    ]


if __name__ == "__main__":
    for row in bench():
        print(f"{row['ratio']:8.2f} {row['unit']} (at most {row['at_most']:g}): {row['what']}: {row['detail']}")
