"""How good a network is on a split, methods aside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS = 15
"""Of the calibration error: equally wide ones."""


@dataclass(frozen=True)
class Measures:
    """How good a network is on a split.

    Attributes:
        top1: accuracy in percent.
        top5: the same with five guesses; None where there are no more than five classes.
        nll: mean negative log-likelihood in nats.
        ece: expected calibration error in percent: |confidence - accuracy|, averaged over 15 bins of the confidence
            (Guo et al. 2017, arXiv 1706.04599, equation 3).
    """

    top1: float
    top5: float | None
    nll: float
    ece: float


def measure(logits: Tensor, labels: Tensor) -> Measures:
    """What logits N x C are worth, given labels N."""
    # Importing torchmetrics takes two seconds, which an interrupted training would pay for nothing.
    from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

    classes = logits.shape[1]
    # A confidence of exactly 1 belongs into the last bin.
    shares = logits.softmax(1).clamp(max=1 - 2**-24)
    top5 = None
    if classes > 5:
        top5 = 100 * float(multiclass_accuracy(logits, labels, classes, average="micro", top_k=5))
    return Measures(
        # Of equal logits the first counts, as in the row of an epoch.
        top1=100 * int((logits.argmax(1) == labels).sum()) / len(labels),
        top5=top5,
        nll=float(F.cross_entropy(logits.double(), labels)),
        ece=100 * float(multiclass_calibration_error(shares, labels, classes, n_bins=BINS, norm="l1")),
    )


@torch.no_grad()
def logits_of(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], normalise: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """All logits N x C float32 and labels N int64, on the host; arguments as for `top1_and_loss`."""
    logits, labels = [], []
    with _evaluating(network):
        for pixels, theirs in batches:
            logits.append(network(normalise(pixels)).float().cpu())
            labels.append(theirs.cpu())
    return torch.cat(logits), torch.cat(labels)


@torch.no_grad()
def top1_and_loss(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], normalise: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """`top1` in percent and `loss`, the mean negative log-likelihood in nats, in evaluation mode.

    The network's mode is restored. Sums are kept on the device, so the host waits once, at the end.

    Args:
        network: images -> logits.
        batches: images N x ch x H x W uint8 and labels N int64 on the network's device; each image counts once.
        normalise: N x ch x H x W uint8 -> float.
    """
    sums: list[Tensor] = []
    images = 0
    with _evaluating(network):
        for pixels, labels in batches:
            logits = network(normalise(pixels)).float()
            loss = F.cross_entropy(logits, labels, reduction="sum").double()
            found = torch.stack([(logits.argmax(1) == labels).sum().double(), loss])
            sums = [found + sums[0]] if sums else [found]
            images += len(labels)
    correct, total = sums[0].tolist()
    return {"top1": 100 * correct / images, "loss": total / images}


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        # Each by itself: parts of a network may have been in evaluation mode all along.
        for module in training:
            module.training = True
