"""DCutMix of a batch, all images at once, against a loop over the images on the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import augury
from augury_dcutmix import DCutMix

N, CHANNELS, SIDE, K, ALPHA, CLASSES = 128, 3, 32, 5, 0.2, 100
REPEATS = 60


def loop(images: Tensor, labels: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """As the official program goes about it: permute the batch, then draw, place and paste image by image.

    Returns:
        mixed images, N x K labels and N x K weights.
    """
    mixed, height, width = images.clone(), *images.shape[-2:]
    orders = [rng.permutation(len(images)) for _ in range(K - 1)]
    sources, weights = [], []
    for i in range(len(images)):
        parts = rng.dirichlet([ALPHA] * K)
        top, left, box_height, box_width = 0, 0, height, width
        rest, areas = 1.0, [height * width]
        for part, order in zip(parts[:-1], orders, strict=True):
            shrink = np.sqrt(1 - min(part / rest, 1.0)) if rest > 0 else 1.0
            rest -= part
            inner_height, inner_width = round(box_height * shrink), round(box_width * shrink)
            top += int(rng.integers(box_height - inner_height + 1))
            left += int(rng.integers(box_width - inner_width + 1))
            box_height, box_width = inner_height, inner_width
            region = slice(top, top + box_height), slice(left, left + box_width)
            mixed[i, :, region[0], region[1]] = images[order[i], :, region[0], region[1]]
            areas.append(box_height * box_width)
        areas.append(0)
        sources.append([i, *(order[i] for order in orders)])
        weights.append([(outer - inner) / (height * width) for outer, inner in zip(areas, areas[1:], strict=False)])
    return mixed, labels[torch.tensor(np.array(sources))], torch.tensor(weights)


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def bench() -> list[dict[str, Any]]:
    """One row, on one thread: neither has enough work for a second one, and waiting for it would be measured."""
    torch.manual_seed(0)
    images, labels = torch.randn(N, CHANNELS, SIDE, SIDE), torch.randint(CLASSES, (N,))
    methods = augury.compose([(DCutMix, {"alpha": ALPHA, "k": K})], num_classes=CLASSES)
    rng = np.random.default_rng(0)

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        batch = methods.batch(images, labels)
        methods.augment_batch(batch)
        methods.step()
        return batch.images, batch.labels, batch.shares

    def reference() -> tuple[Tensor, Tensor, Tensor]:
        return loop(images, labels, rng)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # glibc gives memory back at once, and then pays for getting it again, until it has seen large tensors come and go,
    # as it has in any process that trains.
    torch.ones(30 * 2**20, dtype=torch.uint8)
    try:
        largest = [sum(float(f()[2].max(1).values.mean()) for _ in range(10)) / 10 for f in (ours, reference)]
        assert abs(largest[0] - largest[1]) < 0.03, f"the two mix differently: mean of the largest share {largest}"
        times = [(seconds(ours), seconds(reference)) for _ in range(REPEATS)]
    finally:
        torch.set_num_threads(threads)
    fast, slow = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    return [
        {
            "what": f"DCutMix, {N} images {CHANNELS}×{SIDE}×{SIDE}, K={K}, against a loop over images",
            "ratio": slow / fast,
            "unit": "× faster",
            "at_least": 4.0,
            "detail": f"{fast:.1f} ms against {slow:.1f} ms a batch, median of {REPEATS}, 1 thread",
        }
    ]


if __name__ == "__main__":
    for row in bench():
        print(f"{row['ratio']:8.1f} {row['unit']} (at least {row['at_least']:g}): {row['what']}: {row['detail']}")
