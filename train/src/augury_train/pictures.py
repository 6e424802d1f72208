"""Pictures as matplotlib figures, made without a display; matplotlib is imported when the first is drawn."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from augury.batch import Batch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LINE = 20
"""Letters of a caption's line."""
BAND = 8
"""Images side by side, so that labels are readable on a page."""
COLORS = ("#222222", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")


def batch_picture(
    batch: Batch, originals: Tensor, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
) -> Figure:
    """What the first images of a batch became: as they are in the data set above, as they are trained on below, view by
    view, eight side by side.

    Below each: the classes it is mixed from with their shares, its label smoothing and its pipeline.

    Args:
        batch: after `augment_batch`.
        originals: n x ch x H x W, normalised: the batch's first n images without any transform.
        classes: names by label.
        mean, std: of each channel, to undo the normalisation.
    """
    from matplotlib.figure import Figure

    columns = min(len(originals), BAND)
    bands = [(start, view) for start in range(0, len(originals), BAND) for view in range(batch.views)]
    figure = Figure(figsize=(1.5 * columns, 4.1 * len(bands)), layout="constrained")
    axes = figure.subplots(2 * len(bands), columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[], frame_on=False)
    for band, (start, view) in enumerate(bands):
        above, below = axes[2 * band], axes[2 * band + 1]
        first = batch.view_slices()[view].start
        for column, number in enumerate(range(start, min(start + columns, len(originals)))):
            above[column].imshow(_displayable(originals[number], mean, std), cmap="gray", vmin=0, vmax=1)
            shown = _displayable(batch.images[first + number], mean, std)
            below[column].imshow(shown, cmap="gray", vmin=0, vmax=1)
            below[column].set_xlabel(_caption(batch, first + number, classes), fontsize=7)
        if batch.views > 1:
            above[0].set_title(f"view {view + 1}", fontsize=8, loc="left")
        above[0].set_ylabel("original", fontsize=8)
        below[0].set_ylabel("trained on", fontsize=8)
    return figure


def captioned_picture(images: Tensor, captions: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> Figure:
    """Images, eight side by side, each with a text below.

    Args:
        images: n x ch x H x W, normalised.
        captions: n texts.
        mean, std: of each channel, to undo the normalisation.
    """
    from matplotlib.figure import Figure

    columns, rows = min(len(images), BAND), -(-len(images) // BAND)
    lines = max(caption.count("\n") + 1 for caption in captions)
    figure = Figure(figsize=(1.5 * columns, (1.5 + 0.14 * lines) * rows), layout="constrained")
    for number, ax in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        ax.set(xticks=[], yticks=[], frame_on=False)
        if number < len(images):
            ax.imshow(_displayable(images[number], mean, std), cmap="gray", vmin=0, vmax=1)
            ax.set_xlabel(captions[number], fontsize=7)
    return figure


def _displayable(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    image = image.float().cpu() * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    image = image.clamp(0, 1).permute(1, 2, 0)
    return (image[:, :, 0] if image.shape[2] == 1 else image).numpy()


def _caption(batch: Batch, row: int, classes: Sequence[str]) -> str:
    shares: dict[int, float] = {}
    for label, weight in zip(batch.labels[row].tolist(), batch.shares[row].tolist(), strict=True):
        shares[label] = shares.get(label, 0.0) + weight
    kept = sorted(((share, label) for label, share in shares.items() if share >= 0.005), reverse=True)
    names = [f"{classes[label]} {share:.0%}" if len(kept) > 1 else classes[label] for share, label in kept]
    # Longer ones would run into the next column's.
    lines = ["\n".join(textwrap.wrap(name.replace("_", " "), LINE)) for name in names]
    smoothing = float((batch.shares[row] * batch.smoothing[row]).sum())
    if smoothing > 0:
        lines.append(f"ε = {smoothing:.2f}")
    if batch.hidden is not None:
        lines.append(f"mixed at {batch.hidden.layer}")
    lines.append(batch.pipelines[int(batch.pipeline[row])])
    return "\n".join(lines)


def color(number: int) -> str:
    """The colour of one of several: black for the first, then Okabe and Ito's, which the colour-blind tell apart."""
    return COLORS[number % len(COLORS)]


def tidy(ax: Axes) -> None:
    """A light grid, and no frame where there is no axis."""
    ax.grid(alpha=0.3, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def name_lines(name: str, letters: int) -> str:
    """A composition's name, broken after + and commas into lines, and literal: matplotlib takes what is between two
    dollars for mathematics, and leaves what starts with an underscore out of a legend."""
    lines = [""]
    for part in re.findall(r"[^+,\s]*[+,\s]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > letters:
            lines.append("")
        lines[-1] += part
    broken = [piece for line in lines for piece in textwrap.wrap(line, letters, break_on_hyphens=False)]
    text = "\n".join(broken).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
