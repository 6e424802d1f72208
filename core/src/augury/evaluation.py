"""How good a network is on a split, methods aside."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augury.data.datasets import ImageSet


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageSet,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int = 512,
) -> dict[str, float]:
    """Top-1 accuracy in percent and mean negative log-likelihood in nats, in evaluation mode.

    The network's mode is restored. Sums are kept on the device, so the host waits once, at the end.

    Args:
        network: images -> logits.
        images: the split; any number of images, each counted once.
        normalise: N x ch x H x W uint8 -> float.
        device: where the network is.
        batch_size: images at once.
    """
    was_training = network.training
    network.eval()
    correct = torch.zeros((), dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for rows in torch.arange(len(images)).split(batch_size):
        logits = network(normalise(images.images[rows].to(device, non_blocking=True))).float()
        labels = images.labels[rows].to(device, non_blocking=True)
        correct += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
    network.train(was_training)
    return {"top1": 100 * int(correct) / len(images), "loss": float(loss) / len(images)}
