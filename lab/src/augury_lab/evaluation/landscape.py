"""The loss around a network's weights, along two random directions (Li et al. 2018, arXiv 1712.09913)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from augury.randomness import generator

SIDE = 21
"""Points of the grid, both ways."""
REACH = 1.0
"""From the centre to the border of the grid: at 1 the directions are as long, filter by filter, as the weights."""
NEAR = 0.5
"""Distance within which the rise of the loss is averaged."""

Told = Callable[[int], None]


@dataclass(frozen=True)
class Landscape:
    """The mean cross-entropy in nats at w + a d + b e, for the directions d and e.

    Attributes:
        steps: the values that a and b take, in order; 0 is in the middle.
        loss: a row for each a, a column for each b; None where it is not finite.
        centre: the loss of the network itself on the same images.
        rise: mean loss less `centre` at the points at most 0.5 away: the flatter, the smaller.
        images: that each point was measured on.
        seed: of the directions.
    """

    steps: list[float]
    loss: list[list[float | None]]
    centre: float
    rise: float | None
    images: int
    seed: int


def direction(network: nn.Module, seed: int, axis: int) -> dict[str, Tensor]:
    """A random direction whose filters are as long as the network's own (section 4).

    For each filter, which is a parameter's slice along its first dimension, d <- d / |d| * |w|. Parameters of one
    dimension, biases and those of norms, are left where they are. The draw depends on the seed and the parameter's name
    and shape alone: networks of one architecture get the same.

    Args:
        network: gives the lengths.
        seed: of the draws.
        axis: 0 or 1: which of the two directions.

    Returns:
        by parameter, those of more than one dimension alone.
    """
    made = {}
    for name, weights in network.named_parameters():
        if weights.dim() < 2:
            continue
        # On the host, so that it is the same on every device.
        drawn = torch.randn(weights.shape, generator=generator(seed, "landscape", axis, name)).to(weights.device)
        dims = list(range(1, weights.dim()))
        lengths = [torch.linalg.vector_norm(x.float(), dim=dims, keepdim=True) for x in (weights.detach(), drawn)]
        made[name] = drawn * (lengths[0] / lengths[1].clamp_min(torch.finfo(torch.float32).tiny))
    return made


def grid_of(side: int = SIDE, reach: float = REACH) -> list[float]:
    """Evenly spaced values from -reach to reach, an exact 0 in the middle; `side` is odd."""
    half = side // 2
    return [reach * number / half for number in range(-half, half + 1)] if half else [0.0]


@torch.no_grad()
def loss_around(
    network: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    side: int = SIDE,
    reach: float = REACH,
    told: Told = lambda images: None,
) -> Landscape:
    """Measure the loss on a grid: side x side passes over the images.

    The network's own weights are never written to, and its buffers, BatchNorm's statistics among them, stay as they
    are. The host reads nothing before the end.

    Args:
        network: in evaluation mode.
        batches: images normalised as the network wants them and labels, on its device.
        seed: of the directions.
        side: points both ways, odd.
        reach: of the grid.
        told: called with the number of images after each point.
    """
    steps = grid_of(side, reach)
    first, second = direction(network, seed, 0), direction(network, seed, 1)
    own = {name: weights.detach() for name, weights in network.named_parameters() if name in first}
    images = sum(len(labels) for _, labels in batches)
    losses = torch.empty(len(steps), len(steps), dtype=torch.float64, device=batches[0][1].device)
    for row, a in enumerate(steps):
        for column, b in enumerate(steps):
            moved = {name: weights + a * first[name] + b * second[name] for name, weights in own.items()}
            total = torch.zeros((), dtype=torch.float64, device=losses.device)
            for pixels, labels in batches:
                logits = functional_call(network, moved, (pixels,)).double()
                total = total + F.cross_entropy(logits, labels, reduction="sum")
            losses[row, column] = total / images
            told(images)
    return _read(steps, losses.cpu(), images, seed)


def _read(steps: list[float], losses: Tensor, images: int, seed: int) -> Landscape:
    middle = len(steps) // 2
    places = torch.tensor(steps, dtype=torch.float64)
    away = (places[:, None] ** 2 + places[None] ** 2).sqrt()
    near = losses[(away <= NEAR + 1e-9) & (away > 0)]
    centre = float(losses[middle, middle])
    known = bool(len(near)) and bool(near.isfinite().all())
    return Landscape(
        steps=steps,
        loss=[
            [value if finite else None for value, finite in zip(row, ok, strict=True)]
            for row, ok in zip(losses.tolist(), losses.isfinite().tolist(), strict=True)
        ],
        centre=centre,
        rise=float(near.mean()) - centre if known else None,
        images=images,
        seed=seed,
    )
