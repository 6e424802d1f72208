"""How good a network is on a split, methods aside."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from augury.data.datasets import ImageSet


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: ImageSet,
    normalise: Callable[[Tensor], Tensor],
    device: torch.device,
    batch_size: int = 512,
) -> dict[str, float]:
    """Top-1 accuracy in percent and mean negative log-likelihood in nats, in evaluation mode; the network's mode is
    restored.

    Args:
        network: images -> logits.
        images: the split; any number of images, each counted once.
        normalise: N x ch x H x W uint8 -> float.
        device: where the network is.
        batch_size: images at once.
    """
    was_training = network.training
    network.eval()
    loss = MeanMetric(sync_on_compute=False).to(device)
    top1: MulticlassAccuracy | None = None
    for rows in torch.arange(len(images)).split(batch_size):
        logits = network(normalise(images.images[rows].to(device, non_blocking=True))).float()
        labels = images.labels[rows].to(device, non_blocking=True)
        if top1 is None:
            top1 = MulticlassAccuracy(logits.shape[1], average="micro", validate_args=False, sync_on_compute=False).to(
                device
            )
        top1.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
    network.train(was_training)
    assert top1 is not None, "a split is never empty"
    return {"top1": 100 * float(top1.compute()), "loss": float(loss.compute())}
