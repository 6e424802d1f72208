"""`augury report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What `augury run`, `compare` or `evaluate` has made, finished or not."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where the page goes; report.html in DIR when unset."),
    ] = None,
) -> None:
    """Write one HTML page about a run, a comparison or an evaluation: tables, charts, settings, pictures.

    The file holds all that it shows. It opens without a network, and can be sent to anybody.

    augury report compare
    """
    from augury_lab.report import write_report

    typer.echo(f"report {write_report(folder, output)}")
