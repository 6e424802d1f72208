"""What ReSmooth shows: the losses that it split, and the smoothing that came of it."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from augury_resmooth.functional import Mixture


def losses_figure(base: Tensor, augmented: Tensor, mixture: Mixture) -> Figure:
    """Histograms of the log-losses of base and augmented images, stacked, and the mixture fitted to all of them.

    Args:
        base, augmented: n log-losses each.
        mixture: the fit.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    parts = [base.cpu().numpy(), augmented.cpu().numpy()]
    ax.hist(parts, bins=80, stacked=True, density=True, alpha=0.5, label=["base", "augmented"])
    low, high = ax.get_xlim()
    x = np.linspace(low, high, 1000)
    for name, weight, mean, variance in zip(("ID", "OOD"), *mixture, strict=True):
        density = weight * np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        ax.plot(x, density, label=f"{name}: share {weight:.2f}, mean {mean:.2f}, std {variance**0.5:.2f}")
    ax.set(xlabel="log(loss of the frozen network)", ylabel="density", xlim=(low, high))
    ax.legend(fontsize=8)
    return figure


def smoothing_figure(counts: Tensor, smooth_aug: float) -> Figure:
    """Histogram of the label smoothing of augmented rows.

    Args:
        counts: rows by their P(ID), in bins of equal width over [0, 1].
        smooth_aug: the smoothing of a row whose P(ID) is 0.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    shares = counts.flip(0).double().cpu().numpy() / float(counts.sum())
    ax.stairs(shares, np.linspace(0, 1, len(shares) + 1), fill=True)
    ax.axvline(0.5, color="black", linewidth=0.8, linestyle=":")
    ax.set(xlabel=f"1 - P(ID); times {smooth_aug:g} it is the label smoothing", ylabel="share of the augmented rows")
    return figure
