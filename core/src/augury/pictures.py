"""Pictures as matplotlib figures, made without a display; matplotlib is imported when the first is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from augury.batch import Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LINE = 20
"""Letters of a caption's line."""
BAND = 8
"""Images side by side, so that labels are readable on a page."""


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
    for label, weight in zip(batch.labels[row].tolist(), batch.weights[row].tolist(), strict=True):
        shares[label] = shares.get(label, 0.0) + weight
    kept = sorted(((share, label) for label, share in shares.items() if share >= 0.005), reverse=True)
    names = [f"{classes[label]} {share:.0%}" if len(kept) > 1 else classes[label] for share, label in kept]
    # Longer ones would run into the next column's.
    lines = ["\n".join(textwrap.wrap(name.replace("_", " "), LINE)) for name in names]
    smoothing = float((batch.weights[row] * batch.smoothing[row]).sum())
    if smoothing > 0:
        lines.append(f"ε = {smoothing:.2f}")
    lines.append(batch.pipelines[int(batch.pipeline[row])])
    return "\n".join(lines)


def curves_picture(curves: Mapping[str, Sequence[Sequence[float]]], title: str) -> Figure:
    """Learning curves: one line a composition, the mean over seeds, with the range of the seeds shaded.

    Args:
        curves: composition -> for each seed, the value at each epoch.
        title: what the values are.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    for name, seeds in curves.items():
        # Early stopping ends runs apart: the band ends with the first.
        length = min(map(len, seeds))
        values = torch.tensor([seed[:length] for seed in seeds], dtype=torch.float64)
        epochs = range(1, values.shape[1] + 1)
        (line,) = ax.plot(epochs, values.mean(0), label=name, linewidth=1.5)
        ax.fill_between(epochs, values.amin(0), values.amax(0), color=line.get_color(), alpha=0.12, linewidth=0)
    ax.set(xlabel="epoch", ylabel=title)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure
