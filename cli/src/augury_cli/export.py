"""`augury export`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from augury_cli.settings import AsJson
from augury_cli.tables import print_json


class Format(StrEnum):
    """What the network becomes."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a file of weights from one.")],
    form: Annotated[
        Format, typer.Option("--format", help="What timm loads as one of its models; or ONNX, checked.")
    ] = Format.SAFETENSORS,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="For the files; else RUN/export.")
    ] = None,
    weights: Annotated[str, typer.Option("--weights", metavar="WHICH", help="Of the best or the last epoch.")] = "best",
    as_json: AsJson = False,
) -> None:
    """Write a trained network for use elsewhere, with its classes and preprocessing, and without its methods.

    augury export runs/first --format onnx --output first-onnx
    """
    from augury.errors import one_line
    from augury_train.inference.export import export as write

    found = write(run, form.value, output=output, weights=weights)  # type: ignore[arg-type]  # it refuses others itself
    for note in found.notes:
        typer.echo(one_line(note), err=True)
    sizes = {path: path.stat().st_size for path in found.files}
    if as_json:
        files = [{"file": str(path), "bytes": size} for path, size in sizes.items()]
        print_json({"model": found.model, "files": files, "load": found.load, "notes": found.notes})
        return
    for path, size in sizes.items():
        typer.echo(f"wrote {one_line(str(path))} ({_size(size)})")
    typer.echo(f"\nLoad it in Python:\n\n{found.load}")


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"
