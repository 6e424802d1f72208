"""The table, the picture and the subset that an uncertainty is written to."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from augury.data.subset import FILE, write_subset
from augury.errors import UsageError
from augury.evaluation.uncertainty import END, Uncertainty, choose_subset
from augury.files import replacing
from augury.pictures import LINE, color, name_lines, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

TABLE, PICTURE = "uncertainty.csv", "uncertainty.png"
COLUMNS = ("index", "name", "class", "predicted", "entropy", "expected", "information", "margin")
SHOWN = 8
"""Of the most and of the least certain images."""


def write_uncertainty(found: Uncertainty, folder: Path, keep: float | None = None, end: str = END) -> list[Path]:
    """Write `uncertainty.csv`, `uncertainty.png` and, where a share is to be kept, `subset.json`.

    Args:
        found: what was measured.
        folder: gets the files; those of another time are replaced.
        keep, end: as for `choose_subset`.

    Returns:
        the files.

    Raises:
        UsageError: the folder cannot be made, or what `choose_subset` refuses; nothing is written then.
    """
    chosen = None if keep is None else choose_subset(found, keep, end)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}). Choose another --output.") from None
    files = [folder / TABLE, folder / PICTURE]
    _write_table(found, files[0])
    with replacing(files[1]) as partial:
        uncertainty_picture(found).savefig(partial, format="png", dpi=110)
    if chosen is not None:
        subject, split = found.subject, found.subject.split
        made = {
            "run": str(subject.folder.resolve()),
            "methods": [{"name": name, "options": options} for name, options in found.methods],
            "passes": found.passes,
            "seed": found.seed,
            "keep": keep,
            "end": end,
        }
        files.append(folder / FILE)
        write_subset(files[2], split.source, split.rows[chosen], subject.classes, subject.config.data, made)
    return files


def _write_table(found: Uncertainty, path: Path) -> None:
    """A line an image, in the order of the data set."""
    split, classes = found.subject.split, found.subject.classes
    labels, rows = split.labels.tolist(), split.rows.tolist()
    numbers = torch.stack([found.entropy, found.expected, found.information, found.margin], 1).tolist()
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for place in split.rows.argsort().tolist():
            named = (classes[labels[place]], classes[int(found.predicted[place])])
            cells = [f"{value:.6f}" for value in numbers[place]]
            writer.writerow([rows[place], split.source.name(rows[place]), *named, *cells])


def uncertainty_picture(found: Uncertainty) -> Figure:
    """Histograms of the entropies and margins, and the images at both ends."""
    from matplotlib.figure import Figure

    shown = min(SHOWN, len(found.entropy))
    order = found.entropy.argsort(stable=True)
    figure = Figure(figsize=(12, 8), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=(1.25, 0.9, 0.9))
    _histograms(parts[0], found)
    _images(parts[1], found, "most uncertain", order.flip(0)[:shown])
    _images(parts[2], found, "most certain", order[:shown])
    return figure


def _histograms(figure: SubFigure, found: Uncertainty) -> None:
    right = found.predicted == found.subject.split.labels
    across, beside = figure.subplots(1, 2)
    parts = {"entropy": found.entropy, "expected": found.expected, "information": found.information}
    top = float(found.entropy.max())
    for number, (name, values) in enumerate(parts.items()):
        across.hist(values, bins=40, range=(0, top), histtype="step", linewidth=1.6, color=color(number), label=name)
    told = "" if found.reliability is None else f", reliability {found.reliability:.2f}"
    across.set(title=f"over {found.passes} mixes{told}", xlabel="nats", ylabel="images")
    groups = {"classified rightly": found.margin[right], "wrongly": found.margin[~right]}
    for number, (name, values) in enumerate(groups.items(), 1):
        label = f"{name} ({len(values):,})"
        beside.hist(values, bins=40, range=(-1, 1), histtype="stepfilled", alpha=0.6, color=color(number), label=label)
    beside.set(title="of the images themselves", xlabel="margin", ylabel="images", yscale="log")
    for ax in (across, beside):
        tidy(ax)
        ax.legend(fontsize=8)


def _images(figure: SubFigure, found: Uncertainty, title: str, places: Tensor) -> None:
    subject = found.subject
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    images, labels = subject.images(places).cpu(), subject.split.labels[places].tolist()
    for ax in (axes := figure.subplots(1, SHOWN, squeeze=False)[0]):
        ax.set(xticks=[], yticks=[], frame_on=False)
    for ax, image, place, label in zip(axes, images, places.tolist(), labels, strict=False):
        pixels = image.permute(1, 2, 0).numpy()
        ax.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
        lines = [name_lines(subject.classes[label].replace("_", " "), LINE)]
        if int(found.predicted[place]) != label:
            lines.append("taken for " + name_lines(subject.classes[int(found.predicted[place])], LINE))
        lines.append(f"entropy {float(found.entropy[place]):.2f}\nmargin {float(found.margin[place]):.2f}")
        ax.set_xlabel("\n".join(lines), fontsize=8)
