"""The running mean of a network's weights, and the BatchNorm statistics that belong to it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def flat(network: nn.Module) -> Tensor:
    """Return all parameters of a network one after the other, a vector of P numbers."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


@torch.no_grad()
def unflatten_(network: nn.Module, weights: Tensor) -> None:
    """Write a vector as `flat` makes it into the parameters of a network, in place."""
    parameters = list(network.parameters())
    for parameter, part in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view(parameter.shape))


def fold_(average: Tensor, count: Tensor, weights: Tensor) -> None:
    """Add weights, P numbers, to a running mean P float32 of `count` others, in place."""
    count += 1
    average += (weights.to(average) - average) / count


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm layers whose running statistics are being trained."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]


@torch.no_grad()
def set_statistics_(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Compute the running statistics of BatchNorm anew, in place: the mean over batches of the mean and the unbiased
    variance of each, a batch M x ch x H x W weighed by its images; a last one of a single image is left out.

    Layers that are not in training mode keep theirs. All else is in evaluation mode meanwhile, and as before at last.
    """
    layers, seen = batch_norms(network), 0
    modes = [(module, module.training) for module in network.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    network.eval()
    try:
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
        for images in batches:
            if seen and len(images) == 1:
                continue
            seen += len(images)
            for layer in layers:
                layer.momentum = len(images) / seen
            network(images)
    finally:
        for module, mode in modes:
            module.training = mode
        for layer, momentum in momenta:
            layer.momentum = momentum
