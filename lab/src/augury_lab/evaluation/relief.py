"""The loss around the weights as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from augury_train.pictures import name_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Grid = NDArray[np.float64]
MAP = "viridis"
LOGARITHMIC = 20
"""A linear scale shows nothing of the bottom where the highest loss is more than this times the lowest."""


def landscape(losses: Mapping[str, ArrayLike], first: Sequence[float], second: Sequence[float]) -> Figure:
    """The loss around the weights: for each run its surface and, below, its contours, all on one scale.

    The scale is logarithmic where the losses span more than a factor of 20. What is not finite is left out.

    Args:
        losses: by run, G x H in nats; [i, j] is at `first[i]` along the first direction, `second[j]` along the second.
        first, second: G and H steps.
    """
    from matplotlib.figure import Figure

    grids, (low, high), logarithmic = _scaled(losses)
    width = 3.7 * len(grids) + 1.7
    figure = Figure(figsize=(width, 7.2))
    # The layout engines leave too little beside a surface.
    sides = {"left": 0.7 / width, "right": 1 - 1.05 / width, "bottom": 0.08, "top": 0.92}
    places = figure.add_gridspec(2, len(grids), **sides, hspace=0.12, wspace=0.3)
    for number, (run, grid) in enumerate(grids.items()):
        surface: Any = figure.add_subplot(places[0, number], projection="3d")
        across, along = np.meshgrid(first, second, indexing="ij")
        surface.plot_surface(across, along, grid, cmap=MAP, vmin=low, vmax=high, rstride=1, cstride=1, linewidth=0)
        surface.set(zlim=(low, high))
        surface.set_title(name_lines(run, 36), fontsize=9)
        surface.tick_params(labelsize=7, pad=0)
        # The contours' bar names them.
        surface.set_zticklabels([])
        drawn = _contours(figure.add_subplot(places[1, number]), grid, first, second, np.linspace(low, high, 16))
        surface.locator_params(nbins=4)
    figure.axes[1].set_ylabel("second direction", fontsize=8)
    shape = (1 - 0.9 / width, 0.12, 0.16 / width, 0.34)
    bar = figure.colorbar(drawn, cax=figure.add_axes(shape), label="loss / nats", format="{x:.3g}")
    if logarithmic:
        ticks = _round_between(10**low, 10**high)
        bar.set_ticks([math.log10(tick) for tick in ticks], labels=[f"{tick:g}" for tick in ticks])
    bar.ax.tick_params(labelsize=8)
    return figure


def _scaled(losses: Mapping[str, ArrayLike]) -> tuple[dict[str, Grid], tuple[float, float], bool]:
    """The losses or their logarithms, the ends of their common scale, and whether it is logarithmic."""
    grids = {run: np.asarray(values, dtype=np.float64) for run, values in losses.items()}
    finite = np.concatenate([grid[np.isfinite(grid)] for grid in grids.values()])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    grids = {run: np.where(np.isfinite(grid), grid, np.nan) for run, grid in grids.items()}
    logarithmic = 0 < LOGARITHMIC * low < high
    if logarithmic:
        grids = {run: np.log10(grid) for run, grid in grids.items()}
        low, high = math.log10(low), math.log10(high)
    return grids, (low, max(high, low + 0.05)), logarithmic


def _contours(ax: Axes, grid: Grid, first: Sequence[float], second: Sequence[float], levels: Grid) -> Any:
    shown = np.ma.masked_invalid(grid.T)
    drawn = ax.contourf(first, second, shown, levels, cmap=MAP)
    ax.contour(first, second, shown, levels, colors="white", linewidths=0.5, alpha=0.6)
    ax.plot(0, 0, "+", color="white", markersize=9)
    ax.set(aspect="equal")
    ax.set_facecolor("#dddddd")
    ax.set_xlabel("first direction", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.locator_params(nbins=5)
    return drawn


def _round_between(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, … from the one end to the other; of many powers, themselves alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) < 6 else (1,)
    # Decimal text: 2 * 10**-1 is not 0.2.
    numbers = [float(f"{step}e{power}") for power in powers for step in steps]
    return [number for number in numbers if low * (1 - 1e-9) <= number <= high * (1 + 1e-9)]
