"""What ReSmooth shows: the losses that it split, and the smoothing that came of it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from augury_resmooth.functional import LOSS_BINS, Mixture


def losses_figure(base: Tensor, augmented: Tensor, mixture: Mixture) -> Figure:
    """Histograms of the log-losses of base and augmented images, stacked, and the mixture fitted to all of them.

    Args:
        base, augmented: images in each of `LOSS_BINS`, int64; one of them may be empty.
        mixture: the fit.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    counts = np.stack([base.cpu().numpy(), augmented.cpu().numpy()])
    edges = np.linspace(*LOSS_BINS)
    used = counts.sum(0).nonzero()[0]
    low, high = edges[max(used[0] - 2, 0)], edges[min(used[-1] + 3, len(edges) - 1)]
    density = counts / (counts.sum() * (edges[1] - edges[0]))
    ax.stairs(density[0], edges, fill=True, alpha=0.5, label="base")
    ax.stairs(density.sum(0), edges, baseline=density[0], fill=True, alpha=0.5, label="augmented")
    x = np.linspace(low, high, 1000)
    for name, weight, mean, variance in zip(("ID", "OOD"), *mixture, strict=True):
        shape = weight * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        ax.plot(x, shape, label=f"{name}: share {weight:.2f}, mean {mean:.2f}, std {variance**0.5:.2f}")
    ax.set(xlabel="log(loss of the frozen network)", ylabel="density, one on top of the other", xlim=(low, high))
    ax.legend(fontsize=8)
    return figure


def smoothing_figure(counts: Tensor) -> Figure:
    """Histogram of the label smoothing of the rows that are smoothed by it.

    Args:
        counts: rows in bins of equal width over [0, 1].
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    shares = counts.double().cpu().numpy() / float(counts.sum())
    edges = np.linspace(0, 1, len(shares) + 1)
    ax.stairs(shares, edges, fill=True)
    ax.set(
        xlabel="label smoothing of augmented rows",
        ylabel="share of the rows",
        xlim=(0, edges[shares.nonzero()[0][-1] + 1]),
    )
    return figure
