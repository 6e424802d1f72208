"""Whether a network's probabilities can be believed: reliability, calibration error, temperature (Guo et al. 2017,
arXiv 1706.04599)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from augury_train.measures import BINS, chunks

COLDEST, HOTTEST = 0.01, 100.0
"""Bounds of a temperature. Where all images that it is fitted on are recognised, nothing else bounds it from below."""
NEWTON_STEPS = 100


@dataclass(frozen=True)
class Reliability:
    """Images in equally wide bins of their confidence, the probability of the class that the network names.

    Attributes:
        ece: expected calibration error in percent, the mean of |accuracy - confidence| over the bins, weighted by their
            images (equation 3).
        nll: mean negative log-likelihood in nats.
        edges: where the bins begin and end, one more than there are bins. A bin holds where it begins, the last one
            also where it ends.
        images: in each bin.
        confidence, accuracy: means in each bin, in [0, 1]; None in an empty one.
    """

    ece: float
    nll: float
    edges: list[float]
    images: list[int]
    confidence: list[float | None]
    accuracy: list[float | None]


@dataclass(frozen=True)
class Calibration:
    """Reliability of a network as it is, and after its logits are divided by one temperature.

    Attributes:
        before: as it is.
        temperature: that makes the likelihood of the validation split largest; above 1 where the network is too sure
            of itself. None where it was not fitted.
        after: with that temperature; the answers stay the same.
        note: why there is no temperature, or what to know of it; empty otherwise.
    """

    before: Reliability
    temperature: float | None
    after: Reliability | None
    note: str


def confidence_of(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The largest softmax of each image.

    Args:
        logits: N x C float.
        temperature: that they are divided by.

    Returns:
        N float64 in [0, 1].
    """
    rows = torch.arange(len(logits))
    return torch.cat([(some.double() / temperature).softmax(1).amax(1) for some, _ in chunks(logits, rows)])


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS, temperature: float = 1.0) -> Reliability:
    """Bin the confidences.

    Args:
        logits: N x C float.
        labels: N int64.
        bins: equally wide ones in [0, 1].
        temperature: that the logits are divided by.
    """
    confidence = confidence_of(logits, temperature)
    right = (logits.argmax(1) == labels).double()
    loss = sum(
        float(F.cross_entropy(some.double() / temperature, theirs, reduction="sum"))
        for some, theirs in chunks(logits, labels)
    )
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    # The inner edges alone, so that what float64 cannot tell from 1 is in the last bin.
    places = torch.bucketize(confidence, edges[1:-1], right=True)
    counts = torch.bincount(places, minlength=bins)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, places, x) for x in (confidence, right)]
    gaps = (sums[0] - sums[1]).abs().sum() / len(labels)
    means = [
        [float(total / n) if n else None for total, n in zip(found, counts, strict=True)]  # per bin
        for found in sums
    ]
    return Reliability(
        ece=100 * float(gaps),
        nll=loss / len(labels),
        edges=edges.tolist(),
        images=counts.tolist(),
        confidence=means[0],
        accuracy=means[1],
    )


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes the likelihood of softmax(z / T) largest, within [0.01, 100].

    In b = 1 / T the negative log-likelihood is convex, with the derivative mean(E_p[z] - z_y) and the second one
    mean(Var_p[z]): Newton's steps, halving the bracket where they would leave it, in float64.

    Args:
        logits: N x C float.
        labels: N int64.
    """
    low, high = 1 / HOTTEST, 1 / COLDEST
    b = 1.0
    for _ in range(NEWTON_STEPS):
        slope, curvature = _derivatives(logits, labels, b)
        # Before the bracket is looked at: at the minimum the step is rounded onto its end, or beyond.
        if curvature > 0 and abs(slope) <= 1e-12 * b * curvature:
            break
        if slope > 0:
            high = b
        else:
            low = b
        after = b - slope / curvature if curvature > 0 else -1.0
        if not low < after < high:
            after = (low * high) ** 0.5
        if abs(after - b) <= 1e-12 * b:
            break
        b = after
    return 1 / b


def _derivatives(logits: Tensor, labels: Tensor, b: float) -> tuple[float, float]:
    """The first and the second of the mean negative log-likelihood of softmax(b z), for b."""
    first = second = 0.0
    for some, theirs in chunks(logits, labels):
        z = some.double()
        z = z - z.amax(1, keepdim=True)
        p = (b * z).softmax(1)
        mean = (p * z).sum(1)
        first += float((mean - z.gather(1, theirs[:, None])[:, 0]).sum())
        second += float(((p * z * z).sum(1) - mean**2).sum())
    return first / len(labels), second / len(labels)


def calibrate(
    logits: Tensor, labels: Tensor, fitted_on: tuple[Tensor, Tensor] | None, why_not: str = ""
) -> Calibration:
    """Reliability before and after temperature scaling.

    Args:
        logits, labels: N x C and N of the images that are judged.
        fitted_on: the same of the validation split; None where the temperature is left out.
        why_not: it is.
    """
    before = reliability(logits, labels)
    if fitted_on is None:
        return Calibration(before, None, None, why_not)
    temperature = fit_temperature(*fitted_on)
    note = ""
    if not COLDEST * 1.01 < temperature < HOTTEST / 1.01:
        note = f"the temperature ends at its bound, {temperature:.2g}: the validation split does not determine it"
    return Calibration(before, temperature, reliability(logits, labels, temperature=temperature), note)
