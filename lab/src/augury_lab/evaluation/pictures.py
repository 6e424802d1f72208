"""An evaluation's pictures as matplotlib figures, from plain numbers. Accuracies are in per cent."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from augury_lab.evaluation.relief import landscape
from augury_train.pictures import captioned_picture, color, name_lines, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Bins", "Sweep", "confusion", "corruptions", "landscape", "outliers", "reliability", "sweeps", "worst"]

COUNTED = 20
"""Most classes whose confusion matrix has its counts written in."""
NAMED = 60
"""Most classes whose names are readable beside it."""
CELLS = 250
"""Most rows of a drawn matrix that can be told apart."""
ACROSS = 4
"""Panels side by side."""
GOOD, GAP = "#0072b2", "#d55e00"


@dataclass(frozen=True)
class Bins:
    """Images by the largest softmax, in B bins of one width over [0, 1].

    Attributes:
        confidence: its mean in each bin, in [0, 1]; NaN in an empty one.
        accuracy: share of right answers in each bin, in [0, 1]; NaN in an empty one.
        counts: images in each bin.
        ece: expected calibration error in per cent.
    """

    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]
    ece: float


@dataclass(frozen=True)
class Sweep:
    """Accuracies against what was turned up.

    Attributes:
        label: what, with its unit.
        values: how far, from the least change to the greatest.
        accuracies: of each run in per cent, one for each value.
    """

    label: str
    values: Sequence[float]
    accuracies: Mapping[str, Sequence[float]]


def confusion(counts: ArrayLike, classes: Sequence[str], title: str = "") -> Figure:
    """The confusion matrix: a row for each true class, coloured by the share of its images.

    Few classes have their counts written in; many have the pairs that are confused most often listed beside.

    Args:
        counts: C x C integers, [true, predicted].
        classes: C names.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    matrix = np.asarray(counts)
    images = matrix.sum(1, keepdims=True)
    shares = np.divide(100.0 * matrix, images, out=np.full(matrix.shape, np.nan), where=images > 0)
    side = max(3.2, 0.36 * len(classes)) if len(classes) <= COUNTED else 8.0
    listed = len(classes) > COUNTED
    figure = Figure(figsize=(side + 2 + 2.6 * listed, side + 1), layout="constrained")
    ax, *beside = figure.subplots(1, 1 + listed, width_ratios=[side, 2.6][: 1 + listed], squeeze=False)[0]
    # Most mistakes are rare: the scale is stretched at its lower end.
    ends = (-0.5, len(classes) - 0.5, len(classes) - 0.5, -0.5)
    norm = PowerNorm(0.4, 0, 100)
    drawn = ax.imshow(_largest(shares), cmap="Blues", norm=norm, extent=ends, interpolation="nearest")
    ax.set_facecolor("#dddddd")
    bar = figure.colorbar(
        drawn, ax=ax, label="share of the class's images / %", ticks=[0, 1, 5, 20, 50, 100], shrink=0.7
    )
    bar.ax.tick_params(labelsize=8)
    ax.set_xlabel("predicted", fontsize=9)
    ax.set_ylabel("true", fontsize=9)
    ax.set_title(name_lines(title, 60), fontsize=10)
    _name_classes(ax, classes)
    if listed:
        _list_pairs(beside[0], matrix, classes)
    else:
        for row, column in np.argwhere(matrix):
            shade = "white" if shares[row, column] > 35 else "black"
            ax.text(column, row, f"{matrix[row, column]}", ha="center", va="center", fontsize=7, color=shade)
    return figure


def _largest(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest of each square of classes where they are more than pixels, which would hide most mistakes."""
    size = -(-len(shares) // CELLS)
    if size == 1:
        return shares
    cells = -(-len(shares) // size)
    padded = np.full((cells * size, cells * size), -1.0)
    padded[: len(shares), : len(shares)] = np.nan_to_num(shares, nan=-1.0)
    largest = padded.reshape(cells, size, cells, size).max((1, 3))
    return np.where(largest < 0, np.nan, largest)


def _name_classes(ax: Axes, classes: Sequence[str]) -> None:
    if len(classes) > NAMED:
        ax.tick_params(labelsize=8)
        return
    names = [_short(name, 22) for name in classes]
    size = 8 if len(classes) <= 32 else 6
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    ax.set_yticks(range(len(names)), names, fontsize=size)


def _list_pairs(ax: Axes, matrix: NDArray[Any], classes: Sequence[str]) -> None:
    ax.set_axis_off()
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    most = np.argsort(-mistakes, axis=None, kind="stable")[:20]
    lines = ["most often confused", "true → predicted, images", ""]
    for row, column in zip(*np.unravel_index(most, matrix.shape), strict=True):
        if mistakes[row, column]:
            lines.append(f"{_short(classes[row], 18)} → {_short(classes[column], 18)}  {mistakes[row, column]}")
    ax.text(0, 1, "\n".join(lines), transform=ax.transAxes, va="top", fontsize=7.5, linespacing=1.5)


def worst(
    images: Tensor,
    labels: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[float],
    classes: Sequence[str],
) -> Figure:
    """The images that a network is most wrong about, in the given order, each with its class and what it is taken for.

    Args:
        images: n x ch x H x W in [0, 1].
        labels, predicted: n classes.
        probabilities: n, of the predicted class, in [0, 1].
        classes: names.
    """
    captions = []
    for label, guess, probability in zip(labels, predicted, probabilities, strict=True):
        truth = textwrap.wrap(f"is {classes[label]}".replace("_", " "), 20)
        sure = f"({100 * probability:.0f}\N{NO-BREAK SPACE}%)"
        said = textwrap.wrap(f"taken for {classes[guess]} {sure}".replace("_", " "), 20)
        captions.append("\n".join([*truth, *said]).replace("$", r"\$"))
    channels = images.shape[1]
    return captioned_picture(images, captions, [0.0] * channels, [1.0] * channels)


def reliability(panels: Mapping[str, Bins]) -> Figure:
    """Reliability diagrams: accuracy in each bin of the confidence, the gap to the confidence, and how many images.

    Args:
        panels: by title, say before and after temperature scaling.
    """
    from matplotlib.figure import Figure

    across = min(ACROSS, len(panels))
    down = math.ceil(len(panels) / across)
    figure = Figure(figsize=(2.7 * across + 0.4, 3.9 * down), layout="constrained")
    axes = figure.subplots(2 * down, across, sharex=True, squeeze=False, height_ratios=[3, 1] * down)
    for ax in axes.flat:
        ax.set_visible(False)
    for number, (title, bins) in enumerate(panels.items()):
        row, column = divmod(number, across)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        _reliability_panel(above, below, bins)
        above.set_title(f"{name_lines(title, 36)}\nECE {bins.ece:.2f} %", fontsize=8)
        if column == 0:
            above.set_ylabel("accuracy", fontsize=9)
            below.set_ylabel("images / %", fontsize=9)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def _reliability_panel(above: Axes, below: Axes, bins: Bins) -> None:
    count = len(bins.counts)
    middles, width = (np.arange(count) + 0.5) / count, 1 / count
    accuracy, confidence = np.nan_to_num(bins.accuracy), np.nan_to_num(bins.confidence)
    above.bar(middles, accuracy, width, color=GOOD, edgecolor="white", linewidth=0.5, label="accuracy")
    above.bar(
        middles,
        confidence - accuracy,
        0.55 * width,
        bottom=accuracy,
        fill=False,
        edgecolor=GAP,
        hatch="//////",
        linewidth=0.8,
        label="gap to mean confidence",
    )
    above.plot([0, 1], [0, 1], "--", color="#222222", linewidth=0.8)
    below.bar(middles, 100 * np.asarray(bins.counts) / max(1, sum(bins.counts)), width, color="#808080")
    above.set(xlim=(0, 1), ylim=(0, 1))
    below.set_xlabel("confidence (largest softmax)", fontsize=8)
    for ax in (above, below):
        ax.set_visible(True)
        tidy(ax)
        ax.tick_params(labelsize=8, labelbottom=ax is below)


def sweeps(panels: Mapping[str, Sweep]) -> Figure:
    """Accuracy against the strength of an attack or change: a panel for each, a line for each run.

    Args:
        panels: by title.
    """
    found = [values for sweep in panels.values() for values in sweep.accuracies.values()]
    figure, axes = _panels(len(panels), 3, (3.6, 2.9), found)
    for ax, (title, sweep) in zip(axes, panels.items(), strict=True):
        _run_lines(ax, sweep.values, sweep.accuracies)
        ax.set_title(name_lines(title, 40), fontsize=9)
        ax.set_xlabel(sweep.label, fontsize=8)
    _run_legend(figure, axes[0], list(next(iter(panels.values())).accuracies))
    figure.supylabel("top-1 / %", fontsize=9)
    return figure


def corruptions(accuracies: Mapping[str, Mapping[str, Sequence[float]]], clean: Mapping[str, float]) -> Figure:
    """Accuracy against the severity of each corruption, severity 0 being the clean images; the mean of all comes first.

    Args:
        accuracies: by run and corruption, at severities 1, 2, …
        clean: by run.
    """
    first = next(iter(accuracies.values()))
    panels = {"mean of all": {run: np.mean([*theirs.values()], 0).tolist() for run, theirs in accuracies.items()}}
    panels |= {name: {run: list(theirs[name]) for run, theirs in accuracies.items()} for name in first}
    found = [*([value] for value in clean.values()), *(v for panel in panels.values() for v in panel.values())]
    figure, axes = _panels(len(panels), 5, (2.2, 2.0), found)
    for ax, (name, theirs) in zip(axes, panels.items(), strict=True):
        levels = range(len(next(iter(theirs.values()))) + 1)
        _run_lines(ax, levels, {run: [clean[run], *values] for run, values in theirs.items()})
        ax.set_title(
            name_lines(name.replace("_", " "), 28), fontsize=8, fontweight="bold" if ax is axes[0] else "normal"
        )
    _run_legend(figure, axes[0], list(accuracies))
    figure.supylabel("top-1 / %", fontsize=9)
    figure.supxlabel("severity", fontsize=9)
    return figure


def outliers(known: ArrayLike, others: Mapping[str, ArrayLike]) -> Figure:
    """How sure a network is on its own data set's images and on others': histograms of the largest softmax.

    Args:
        known: N, in [0, 1].
        others: by data set, the same of its images.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    ax = figure.subplots()
    edges = np.linspace(0, 1, 31)
    shares = {name: _histogram(values, edges) for name, values in {"own images": known, **others}.items()}
    for number, (name, share) in enumerate(shares.items()):
        label = name_lines(name, 40)
        if number == 0:
            ax.stairs(share, edges, color="#808080", alpha=0.5, fill=True, label=label)
        else:
            ax.stairs(share, edges, color=color(number), linewidth=1.6, label=label)
    ax.set_xlabel("largest softmax", fontsize=9)
    ax.set_ylabel("images / %", fontsize=9)
    ax.set(xlim=(0, 1))
    tidy(ax)
    ax.tick_params(labelsize=8)
    ax.legend(fontsize=8, loc="upper left")
    return figure


def _histogram(values: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.asarray(values, dtype=np.float64)
    return 100 * np.histogram(found, edges)[0] / max(1, found.size)


def _panels(
    count: int, across: int, size: tuple[float, float], found: Sequence[Sequence[float]]
) -> tuple[Figure, list[Axes]]:
    """As many panels on one scale for `found`, which starts at 0 where it goes far down."""
    from matplotlib.figure import Figure

    across = min(across, count)
    down = math.ceil(count / across)
    figure = Figure(figsize=(size[0] * across + 0.4, size[1] * down + 0.5), layout="constrained")
    axes = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    values = [value for line in found for value in line if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=100.0)
    margin = 0.06 * max(high - low, 1)
    for ax in axes[:count]:
        tidy(ax)
        ax.tick_params(labelsize=8)
        ax.set_ylim(0 if low < high / 2 else max(0, low - margin), high + margin)
    return figure, axes[:count]


def _run_lines(ax: Axes, values: Sequence[float], runs: Mapping[str, Sequence[float]]) -> None:
    for number, accuracies in enumerate(runs.values()):
        # The colours come again after eight.
        style = ("-", "--", ":")[number // 8 % 3]
        ax.plot(values, accuracies, style, marker="o", markersize=3, linewidth=1.3, color=color(number))
    if len(values) <= 8:
        ax.set_xticks(list(values), [f"{value:g}" for value in values])


def _run_legend(figure: Figure, ax: Axes, runs: Sequence[str]) -> None:
    if len(runs) > 1:
        names = [name_lines(run, 44) for run in runs]
        figure.legend(ax.get_lines(), names, loc="outside upper center", ncols=min(4, len(runs)), fontsize=8)


def _short(name: str, letters: int) -> str:
    cut = name if len(name) <= letters else f"{name[: letters - 1]}…"
    return cut.replace("$", r"\$")
