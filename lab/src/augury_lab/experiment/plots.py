"""A comparison's figures: learning curves, differences to the base, accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from augury_lab.experiment.table import Comparison, Difference, Row
from augury_train.files import replacing
from augury_train.pictures import color, name_lines, tidy
from augury_train.training.recorder import METRICS, read_rows
from augury_train.training.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BETTER, WORSE, UNCLEAR, BASE = "#0072b2", "#d55e00", "#808080", "#222222"
TOGETHER = 5
"""More compositions' bands hide one another, and get a panel each."""


def draw(comparison: Comparison) -> None:
    """Save `curves.png`, `differences.png` (with anything beside the base) and `cost.png` into the suite's folder."""
    figures = {"curves": curves(comparison), "cost": cost(comparison)}
    if len(comparison.rows) > 1:
        figures["differences"] = forest(comparison)
    for name, figure in figures.items():
        with replacing(comparison.folder / f"{name}.png") as partial:
            figure.savefig(partial, dpi=130, format="png")


def curves(comparison: Comparison) -> Figure:
    """Accuracy, epoch by epoch, on the split that chose the epochs: the mean over seeds, and their range as a band.

    Up to five compositions share one panel; more have one each, with the base behind. The axis starts where the
    runs are after a quarter of their epochs, so that the end can be read.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    found = {name: values for name, runs in comparison.runs.items() if (values := _curve(runs)).size}
    names = [name for name in found if name != comparison.base]
    apart = len(found) > TOGETHER
    across = min(4, len(names)) if apart else 1
    down = math.ceil(len(names) / across) if apart else 1
    figure = Figure(figsize=(3 * across, 2.4 * down + 0.4) if apart else (8, 4.5), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(names) if apart else 1 :]:
        ax.set_visible(False)
    for number, name in enumerate(names if apart else found):
        ax = axes.flat[number if apart else 0]
        if apart:
            if comparison.base in found:
                _band(ax, found[comparison.base], UNCLEAR, comparison.base)
            ax.set_title(name_lines(name, 34), fontsize=8)
        _band(ax, found[name], color(1 if apart else number), name)
    for ax in axes.flat:
        tidy(ax)
        ax.tick_params(labelsize=8, labelbottom=True)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    chosen = "/".join(sorted({run.chosen_on for runs in comparison.runs.values() for run in runs}))
    figure.supxlabel("epoch", fontsize=9)
    figure.supylabel(f"{chosen.replace('val', 'validation')} top-1 / %", fontsize=9)
    if found:
        _show_the_end(axes.flat[0], list(found.values()))
    if apart:
        figure.suptitle(f"in grey: {name_lines(comparison.base, 60)}; bands: range of the seeds", fontsize=8)
    elif found:
        axes.flat[0].legend(fontsize=8, loc="lower right", title="mean and range of the seeds", title_fontsize=8)
    return figure


def _curve(runs: Sequence[Result]) -> NDArray[np.float64]:
    """Seeds x epochs; early stopping ends runs apart, and the curve ends with the first."""
    seeds = []
    for run in runs:
        path = Path(run.folder) / METRICS
        key = f"{run.chosen_on}_ema_top1" if run.weights == "ema" else f"{run.chosen_on}_top1"
        # A finished run's file may have been tidied away; its result has not.
        seeds.append([row[key] for row in read_rows(path)] if path.exists() else [])
    epochs = min(map(len, seeds))
    return np.array([values[:epochs] for values in seeds], dtype=np.float64)


def _band(ax: Axes, values: NDArray[np.float64], shade: str, name: str) -> None:
    epochs = np.arange(1, values.shape[1] + 1)
    marker = "o" if len(epochs) == 1 else ""
    ax.plot(epochs, values.mean(0), label=name_lines(name, 44), color=shade, linewidth=1.4, marker=marker)
    ax.fill_between(epochs, values.min(0), values.max(0), color=shade, alpha=0.15, linewidth=0)


def _show_the_end(ax: Axes, found: Sequence[NDArray[np.float64]]) -> None:
    later = [values[:, values.shape[1] // 4 :] for values in found]
    low, high = min(values.min() for values in later), max(values.max() for values in found)
    margin = max(0.05 * (high - low), 0.1)
    ax.set_ylim(low - margin, high + margin)


def forest(comparison: Comparison) -> Figure:
    """Differences to the base: each seed's as a dot, their mean with its 95 % interval, and the verdict as a colour.

    An interval that is much wider than the seeds' differences runs off the axis, with an arrow.
    """
    from matplotlib.figure import Figure

    others = [(row, row.difference) for row in comparison.rows if row.difference is not None]
    seeds = [_seed_differences(comparison, row) for row, _ in others]
    labels = [name_lines(row.composition, 40) for row, _ in others]
    lines = sum(max(2, label.count("\n") + 1) for label in labels)
    figure = Figure(figsize=(9, 1.5 + 0.26 * lines), layout="constrained")
    ax = figure.subplots()
    ends = _ends([found for _, found in others], seeds)
    ax.axvline(0, color=BASE, linewidth=1)
    for place, ((_, found), values) in enumerate(zip(others, seeds, strict=True)):
        shade = _shade(found)
        # Below the interval, which would hide them.
        ax.plot(values, [place + 0.2] * len(values), "o", color=shade, markersize=4, alpha=0.4, markeredgewidth=0)
        _interval(ax, found, place, shade, ends)
        ax.text(1.02, place, _summary(found), transform=ax.get_yaxis_transform(), fontsize=8, va="center")
    ax.set(xlim=ends, ylim=(len(others) - 0.5, -0.5), yticks=range(len(others)))
    ax.set_yticklabels(labels, fontsize=8)
    ax.set_xlabel(f"top-1 minus {name_lines(comparison.base, 80)} / percentage points", fontsize=9)
    tidy(ax)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="x", labelsize=8)
    _verdict_legend(figure, [found for _, found in others])
    return figure


def _seed_differences(comparison: Comparison, row: Row) -> list[float]:
    pairs = zip(comparison.runs[row.composition], comparison.runs[comparison.base], strict=True)
    return [ours.best[comparison.split].top1 - theirs.best[comparison.split].top1 for ours, theirs in pairs]


def _ends(found: Sequence[Difference], seeds: Sequence[Sequence[float]]) -> tuple[float, float]:
    """From where to where the axis goes: 0, all seeds, and intervals as far as thrice the farthest seed."""
    shown = [value for values in seeds for value in values if math.isfinite(value)]
    limit = 3 * max(map(abs, shown), default=0) or math.inf
    shown += [max(one.low, -limit) for one in found if one.low is not None]
    shown += [min(one.high, limit) for one in found if one.high is not None]
    low, high = min([0.0, *shown]), max([0.0, *shown])
    margin = 0.07 * (high - low) or 1.0
    return low - margin, high + margin


def _interval(ax: Axes, found: Difference, place: int, shade: str, ends: tuple[float, float]) -> None:
    if found.low is not None and found.high is not None:
        ax.plot([found.low, found.high], [place, place], color=shade, linewidth=2, solid_capstyle="butt")
        if found.low < ends[0]:
            ax.plot(ends[0], place, "<", color=shade, markersize=8, clip_on=False)
        if found.high > ends[1]:
            ax.plot(ends[1], place, ">", color=shade, markersize=8, clip_on=False)
    face = "white" if found.low is None else shade
    ax.plot(found.mean, place, "D", color=shade, markerfacecolor=face, markersize=7)


def _summary(found: Difference) -> str:
    if not math.isfinite(found.mean):
        return "not finite"
    if found.low is None or found.high is None or found.p_holm is None:
        return f"{found.mean:+.2f}, one seed"
    p = "p < 0.001" if found.p_holm < 0.001 else f"p = {found.p_holm:.3f}"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]\n{p}"


def _shade(found: Difference | None) -> str:
    if found is None:
        return BASE
    return {"better": BETTER, "worse": WORSE}.get(found.verdict, UNCLEAR)


def _verdict_legend(figure: Figure, found: Sequence[Difference]) -> None:
    from matplotlib.lines import Line2D

    tested = any(one.p_holm is not None for one in found)
    names = {BETTER: "better", WORSE: "worse", UNCLEAR: "not distinguishable" if tested else "of one seed"}
    shades = {_shade(one) for one in found}
    marks = [
        Line2D([], [], color=shade, marker="D", linewidth=2, label=name)
        for shade, name in names.items()
        if shade in shades
    ]
    marks.append(Line2D([], [], color=UNCLEAR, marker="o", markersize=4, alpha=0.5, linewidth=0, label="a seed"))
    title = "mean, its 95 % interval, p by Holm" if tested else None
    figure.legend(
        handles=marks, loc="outside upper center", ncols=len(marks), fontsize=8, title=title, title_fontsize=8
    )


def cost(comparison: Comparison) -> Figure:
    """Accuracy (mean, and standard deviation over seeds) against forward passes and against seconds.

    Both panels share the accuracy's axis, so that a name at the right belongs to the marks at its height in both.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    rows = [row for row in comparison.rows if math.isfinite(row.best_top1.mean)]
    labels = [name_lines(row.composition, 38) for row in rows]
    lines = sum(label.count("\n") + 1.6 for label in labels)
    height = max(4.0, 0.17 * lines + 1)
    figure = Figure(figsize=(11, height), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, axis in ((left, "forward_passes"), (right, "seconds")):
        for row in rows:
            shade, x = _shade(row.difference), getattr(row, axis)
            ax.errorbar(x, row.best_top1.mean, row.best_top1.std, fmt="o", color=shade, markersize=6, capsize=2)
        ax.set_xlabel({"forward_passes": "forward passes of a run", "seconds": "seconds of a run"}[axis], fontsize=9)
        ax.xaxis.set_major_formatter(EngFormatter())
        ax.margins(x=0.12, y=0.1)
        tidy(ax)
        ax.tick_params(labelsize=8)
    words = {"test": "test", "val": "validation"}
    left.set_ylabel(f"{words[comparison.split]} top-1 / %", fontsize=9)
    _name_at_the_right(right, rows, labels, height)
    return figure


def _name_at_the_right(ax: Axes, rows: Sequence[Row], labels: Sequence[str], height: float) -> None:
    """Names in a column right of the panel, in the marks' order of height, each with a line to its mark."""
    low, high = ax.get_ylim()
    # A line of 8 points, as a share of a panel that is some 0.8 inches lower than its figure.
    line = 8 * 1.35 / 72 / (height - 0.8)
    sizes = [(label.count("\n") + 1.3) * line for label in labels]
    places = spaced([(row.best_top1.mean - low) / (high - low) for row in rows], sizes)
    for row, label, place in zip(rows, labels, places, strict=True):
        ax.annotate(
            label,
            (row.seconds, row.best_top1.mean),
            xytext=(1.06, place),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            color=_shade(row.difference),
            arrowprops={
                "arrowstyle": "-",
                "color": _shade(row.difference),
                "alpha": 0.35,
                "linewidth": 0.7,
                "relpos": (0, 0.5),
            },
        )


def spaced(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Centres of intervals of the given sizes in [0, 1], in the order of `wanted` and near it, that do not overlap.

    Where they are too many to fit, they overlap the least by leaving [0, 1] at the bottom.
    """
    places = list(wanted)
    order = sorted(range(len(places)), key=lambda number: places[number])
    floor = 0.0
    for number in order:
        places[number] = max(places[number], floor + sizes[number] / 2)
        floor = places[number] + sizes[number] / 2
    ceiling = 1.0
    for number in reversed(order):
        places[number] = min(places[number], ceiling - sizes[number] / 2)
        ceiling = places[number] - sizes[number] / 2
    return places
