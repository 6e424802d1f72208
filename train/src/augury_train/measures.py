"""How good a network is on a split, methods aside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augury.distributed import Ranks
from augury_train.data.loader import IGNORED

BINS = 15
"""Of the calibration error: equally wide ones."""
AT_ONCE = 2**20
"""Logits in a chunk: over 1,000 classes float64 copies of all of them would take many times their own memory."""


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
    right = right5 = 0
    loss, confidences, sure = 0.0, [], []
    for some, theirs in chunks(logits, labels):
        # Of equal logits the first counts, as in the row of an epoch.
        right += int((some.argmax(1) == theirs).sum())
        if logits.shape[1] > 5:
            right5 += int((some.topk(5).indices == theirs[:, None]).sum())
        loss += float(F.cross_entropy(some.double(), theirs, reduction="sum"))
        # A confidence of exactly 1 belongs into the last bin.
        confidence, answers = some.softmax(1).clamp(max=1 - 2**-24).max(1)
        confidences.append(confidence)
        sure.append(answers == theirs)
    images = len(labels)
    return Measures(
        top1=100 * right / images,
        top5=100 * right5 / images if logits.shape[1] > 5 else None,
        nll=loss / images,
        ece=100 * _calibration_error(torch.cat(confidences), torch.cat(sure)),
    )


def _calibration_error(confidences: Tensor, right: Tensor) -> float:
    """Of N float confidences and whether they were justified, N bool; in [0, 1]."""
    # Importing torchmetrics takes two seconds, which an interrupted training would pay for nothing.
    from torchmetrics.functional.classification import multiclass_calibration_error

    # It looks at nothing but the largest share and whether it is the label's: two columns say the same as all classes.
    shares = torch.stack([confidences, torch.zeros_like(confidences)], 1)
    return float(multiclass_calibration_error(shares, (~right).long(), 2, n_bins=BINS, norm="l1"))


def chunks(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits N x C and labels N, a few rows at a time, in order."""
    rows = max(1, AT_ONCE // logits.shape[1])
    return zip(logits.split(rows), labels.split(rows), strict=True)


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


def gather_logits(logits: Tensor, labels: Tensor, ranks: Ranks, device: torch.device) -> tuple[Tensor, Tensor]:
    """What `logits_of` gave each process for its share of a split (`augury_train.data.loader.share_of_split`), as it is
    for the whole split, in order.

    Args:
        logits, labels: n x C and n on the host, equally many in each process.
        ranks: the processes.
        device: where they gather.
    """
    if ranks.size == 1:
        return logits, labels
    every, theirs = (ranks.gather_rows(found.to(device)).cpu() for found in (logits, labels))
    return every[theirs != IGNORED], theirs[theirs != IGNORED]


@torch.no_grad()
def average_statistics(network: nn.Module, ranks: Ranks) -> None:
    """Give all processes one network: the mean of the running statistics that each gathered on its own rows.

    Those of layers that gather none, because they are frozen, are the same already.
    """
    if ranks.size == 1:
        return
    for module in network.modules():
        scale = getattr(module, "weight", None)
        if getattr(module, "running_mean", None) is None or (scale is not None and not scale.requires_grad):
            continue
        for name in ("running_mean", "running_var"):
            statistic = getattr(module, name)
            statistic.copy_(ranks.mean(statistic))


@torch.no_grad()
def top1_and_loss(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    normalise: Callable[[Tensor], Tensor],
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """`top1` in percent and `loss`, the mean negative log-likelihood in nats, in evaluation mode.

    The network's mode is restored. Sums are kept on the device, so the host waits once, at the end.

    Args:
        network: images -> logits.
        batches: images N x ch x H x W uint8 and labels N int64 on the network's device; each image counts once, those
            labelled `IGNORED` not at all.
        normalise: N x ch x H x W uint8 -> float.
        ranks: the processes whose batches count together.
    """
    sums: list[Tensor] = []
    with _evaluating(network):
        for pixels, labels in batches:
            logits = network(normalise(pixels)).float()
            loss = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED).double()
            counted = torch.stack([(logits.argmax(1) == labels).sum(), (labels != IGNORED).sum()])
            found = torch.cat([counted.double(), loss[None]])
            sums = [found + sums[0]] if sums else [found]
    correct, images, total = (sums[0] if ranks is None else ranks.sum(sums[0])).tolist()
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
