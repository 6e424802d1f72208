"""`augury predict`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.tables import print_rows

if TYPE_CHECKING:
    from augury_train.inference.predict import Prediction


class Format(StrEnum):
    """How predictions are printed."""

    TABLE = "table"
    JSONL = "jsonl"
    CSV = "csv"


def predict(
    network: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run folder, or what `augury export --format safetensors` wrote.")
    ],
    images: Annotated[
        list[Path],
        # Those that may not be read are marked as all others are.
        typer.Argument(metavar="IMAGE|DIR...", help="Image files, and folders of them.", readable=False),
    ],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="Tell so many classes of each image.")] = 3,
    form: Annotated[
        Format, typer.Option("--format", help="A table, an object a line as they come, or rows with commas.")
    ] = Format.TABLE,
    weights: Annotated[str, typer.Option("--weights", metavar="WHICH", help="Of the best or the last epoch.")] = "best",
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Most images at once.")] = 64,
) -> None:
    """Tell the classes of images, and how probable a trained network takes them to be.

    Images that cannot be read are marked, and make the exit code 1.

    augury predict runs/first photos --top 5 --format csv > predictions.csv
    """
    from augury.errors import one_line
    from augury_train.inference.classifier import load_classifier
    from augury_train.inference.predict import find_images
    from augury_train.inference.predict import predict as ask

    files = find_images(images)
    classifier = load_classifier(network, weights, device)  # type: ignore[arg-type]  # it refuses other weights itself
    for note in classifier.notes:
        typer.echo(one_line(note), err=True)
    top = min(top, len(classifier.classes))
    found = ask(classifier, files, top=top, batch_size=batch_size)
    unread = {Format.TABLE: _table, Format.JSONL: _json_lines, Format.CSV: _csv}[form](found, len(files), top)
    if unread:
        typer.echo(f"{unread:,} of {len(files):,} images could not be read.", err=True)
        raise typer.Exit(1)


def _table(found: Iterable[Prediction], total: int, top: int) -> int:
    from augury.errors import one_line
    from augury_cli.progress import Terminal

    rows: list[tuple[str, ...]] = []
    unread = 0
    with Terminal(epochs=False) as terminal:
        for prediction in found:
            if prediction.error is None:
                first, *others = [f"{p:.1%}" for p in prediction.probabilities]
                more = ", ".join(f"{name} {p}" for name, p in zip(prediction.classes[1:], others, strict=True))
                cells = (prediction.file, prediction.classes[0], first, more)
            else:
                unread += 1
                cells = (prediction.file, "cannot be read", "-", prediction.error)
            rows.append(tuple(map(one_line, cells)))
            terminal.read(len(rows), total)
    shown = 4 if top > 1 or unread else 3
    titles = ("image", "class", "probability", "then")[:shown]
    print_rows(titles, [row[:shown] for row in rows], wraps=titles[3:], right=("probability",))
    return unread


def _json_lines(found: Iterable[Prediction], total: int, top: int) -> int:
    unread = 0
    for prediction in found:
        if prediction.error is not None:
            unread += 1
            row: dict[str, object] = {"file": prediction.file, "error": prediction.error}
        else:
            pairs = zip(prediction.classes, prediction.probabilities, strict=True)
            likeliest = [{"class": name, "probability": probability} for name, probability in pairs]
            row = {"file": prediction.file, **likeliest[0], "top": likeliest}
        typer.echo(json.dumps(row))
    return unread


def _csv(found: Iterable[Prediction], total: int, top: int) -> int:
    numbers = ["", *(f"_{place}" for place in range(2, top + 1))]
    _print_csv(["file", *(f"{key}{number}" for number in numbers for key in ("class", "probability")), "error"])
    unread = 0
    for prediction in found:
        unread += prediction.error is not None
        cells = list(_alternating(prediction)) or [""] * (2 * top)
        _print_csv([prediction.file, *cells, prediction.error or ""])
    return unread


def _alternating(prediction: Prediction) -> Iterator[str]:
    for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
        yield name
        yield f"{probability:.6f}"


def _print_csv(cells: list[str]) -> None:
    from augury.errors import plain
    from augury_lab.csv_rows import ERRORS, csv_row

    text = csv_row(cells)
    if sys.stdout.isatty():
        text = plain(text)
    # As bytes: names of files need not be text.
    typer.echo(text.encode("utf-8", ERRORS), nl=False)
