"""The table, the picture and the subset that an uncertainty is written to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from augury.errors import UsageError
from augury_lab.csv_rows import ERRORS, csv_row
from augury_lab.evaluation.uncertainty import END, Uncertainty, choose_subset
from augury_lab.evaluation.writing import save_picture
from augury_train.data.subset import FILE, write_subset
from augury_train.files import replacing
from augury_train.pictures import LINE, color, name_lines, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

TABLE, PICTURE = "uncertainty.csv", "uncertainty.png"
COLUMNS = ("index", "name", "class", "predicted", "entropy", "expected", "information", "margin")
SHOWN = 8
"""Of the most and of the least certain images."""
DIGITS = (2, 5)
"""Decimals of an entropy, and at most so many where fewer do not tell neighbours apart."""


def write_uncertainty(found: Uncertainty, folder: Path, keep: float | None = None, end: str = END) -> list[Path]:
    """Write `uncertainty.csv`, `uncertainty.png` and, where a share is to be kept, `subset.json`.

    Args:
        found: what was measured.
        folder: gets the files; those of another time are replaced, or removed where there is no new one.
        keep, end: as for `choose_subset`.

    Returns:
        the files.

    Raises:
        UsageError: what `choose_subset` or `check_output` refuses, and nothing is written then; or the disk is full.
    """
    chosen = None if keep is None else choose_subset(found, keep, end)
    check_output(folder)
    picture = uncertainty_picture(found)
    files = [folder / TABLE, folder / PICTURE]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if chosen is None and files[0].exists():
            # An earlier call's, of other numbers than those beside which it would stand.
            (folder / FILE).unlink(missing_ok=True)
        _write_table(found, files[0])
        save_picture(picture, files[1])
        if chosen is not None:
            files.append(folder / FILE)
            _write_subset(found, files[2], chosen, {"keep": keep, "end": end})
    except OSError as error:
        raise _unwritable(folder, error) from None
    return files


def check_output(folder: Path) -> None:
    """See whether an uncertainty can be written to a folder, and leave nothing behind.

    Raises:
        UsageError: it cannot be made or written to, or is a run's, which may keep a subset of its own.
    """
    if os.path.exists(folder / "config.json"):
        raise UsageError(f"{folder} is a run's folder. Choose another --output.")
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TABLE, PICTURE, FILE):
            if (folder / name).is_dir():
                raise UsageError(f"{folder / name} is a folder, not a file. Choose another --output.")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(folder, error) from None
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"{folder}: cannot be written to ({error.strerror or error}). Choose another --output.")


def _write_subset(found: Uncertainty, path: Path, chosen: Tensor, choice: dict[str, Any]) -> None:
    subject, split = found.subject, found.subject.split
    made = {
        "run": str(subject.folder.resolve()),
        "methods": [{"name": name, "options": options} for name, options in found.methods],
        "passes": found.passes,
        "seed": found.seed,
        **choice,
    }
    write_subset(path, split.source, split.rows[chosen], subject.classes, subject.config.data, made)


def _write_table(found: Uncertainty, path: Path) -> None:
    """A line an image, the most uncertain first."""
    split, classes = found.subject.split, found.subject.classes
    labels, rows = split.labels.tolist(), split.rows.tolist()
    numbers = torch.stack([found.entropy, found.expected, found.information, found.margin], 1).tolist()
    with replacing(path) as partial, partial.open("w", encoding="utf-8", errors=ERRORS) as file:
        file.write(csv_row(COLUMNS))
        for place in most_uncertain(found).tolist():
            named = (classes[labels[place]], classes[int(found.predicted[place])])
            cells = [f"{value:.6f}" for value in numbers[place]]
            file.write(csv_row([rows[place], split.source.name(rows[place]), *named, *cells]))


def most_uncertain(found: Uncertainty) -> Tensor:
    """Places in the training split by entropy, the highest first; equal ones in the order of the data set.

    Returns:
        N int64.
    """
    places = found.subject.split.rows.argsort()
    return places[found.entropy[places].argsort(descending=True, stable=True)]


def entropy_cells(values: Sequence[float]) -> list[str]:
    """Entropies with two decimals, or as many more, up to five, as it takes to tell them apart."""
    fewest, most = DIGITS
    wanted = len({f"{value:.{most}f}" for value in values})
    for digits in range(fewest, most + 1):
        cells = [f"{value:.{digits}f}" for value in values]
        if len({*cells}) == wanted:
            break
    return cells


def uncertainty_picture(found: Uncertainty) -> Figure:
    """Histograms of the entropies and margins, and the images at both ends."""
    from matplotlib.figure import Figure

    shown = min(SHOWN, len(found.entropy))
    order = most_uncertain(found)
    ends = {"most uncertain": order[:shown], "most certain": order.flip(0)[:shown]}
    captions = {title: _captions(found, places) for title, places in ends.items()}
    # A row's title, its images, and captions of as many lines as there are.
    heights = [3.3, *(2.1 + 0.15 * max(text.count("\n") + 1 for text in texts) for texts in captions.values())]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    _histograms(parts[0], found)
    for part, (title, places) in zip(parts[1:], ends.items(), strict=True):
        part.suptitle(title, x=0.01, ha="left", fontsize=11)
        _images(part, found, places, captions[title])
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


def _images(figure: SubFigure, found: Uncertainty, places: Tensor, captions: Sequence[str]) -> None:
    images = found.subject.images(places).cpu()
    for ax in (axes := figure.subplots(1, SHOWN, squeeze=False)[0]):
        # At the top, so that what room is left is the captions'.
        ax.set(xticks=[], yticks=[], frame_on=False, anchor="N")
    for ax, image, caption in zip(axes, images, captions, strict=False):
        pixels = image.permute(1, 2, 0).numpy()
        ax.imshow(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
        ax.set_xlabel(caption, fontsize=8)


def _captions(found: Uncertainty, places: Tensor) -> list[str]:
    names = [name_lines(name.replace("_", " "), LINE) for name in found.subject.classes]
    entropies = entropy_cells(found.entropy[places].tolist())
    labels, predicted = found.subject.split.labels[places].tolist(), found.predicted[places].tolist()
    captions = []
    for label, taken, entropy, margin in zip(labels, predicted, entropies, found.margin[places].tolist(), strict=True):
        lines = [names[label]] if label == taken else [names[label], f"taken for {names[taken]}"]
        captions.append("\n".join([*lines, f"entropy {entropy}", f"margin {margin:.2f}"]))
    return captions
