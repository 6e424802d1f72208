"""How good a network is on a split, methods aside."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], normalise: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Top-1 accuracy in percent and mean negative log-likelihood in nats, in evaluation mode.

    The network's mode is restored. Sums are kept on the device, so the host waits once, at the end.

    Args:
        network: images -> logits.
        batches: images N x ch x H x W uint8 and labels N int64 on the network's device; each image counts once.
        normalise: N x ch x H x W uint8 -> float.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    sums: list[Tensor] = []
    images = 0
    try:
        for pixels, labels in batches:
            logits = network(normalise(pixels)).float()
            loss = F.cross_entropy(logits, labels, reduction="sum").double()
            found = torch.stack([(logits.argmax(1) == labels).sum().double(), loss])
            sums = [found + sums[0]] if sums else [found]
            images += len(labels)
    finally:
        # Each by itself: parts of a network may have been in evaluation mode all along.
        for module in training:
            module.training = True
    correct, total = sums[0].tolist()
    return {"top1": 100 * correct / images, "loss": total / images}
