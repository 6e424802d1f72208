"""Rows and fields as their reader can use them: whole lines for a pipe, what fits for a terminal."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

import typer

from augury.errors import one_line

# What wraps is not readable in less.
_NARROW = 18
# Where there is no room for labels beside the text.
_SLIM = 60


def print_json(value: Any) -> None:
    """Print one JSON value; what JSON has no word for is refused."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def print_rows(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    wraps: Collection[str] = (),
    right: Collection[str] = (),
    head: Collection[str] = (),
    spare: Sequence[str] = (),
) -> None:
    """Print one line a row into a pipe; on a terminal a table, or paragraphs where a table would not fit.

    Args:
        titles: of the columns.
        rows: a cell for each column, of whatever characters; those that steer a terminal are written out.
        wraps: titles of the columns that may be broken into lines.
        right: titles of the columns that are aligned to the right.
        head: titles of the columns that make the first line of a paragraph; the first one when empty.
        spare: titles of the columns that a terminal too narrow for all is spared, one after the other.
    """
    rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    least = [min(width, _NARROW) if title in wraps else width for title, width in zip(titles, widths, strict=True)]
    columns = shutil.get_terminal_size().columns
    if not sys.stdout.isatty():
        for row in [titles, *rows]:
            cells = zip(titles, row, widths, strict=True)
            typer.echo("  ".join(f"{cell:{'>' if t in right else '<'}{width}}" for t, cell, width in cells).rstrip())
    elif sum(least) + 3 * len(least) <= columns:
        _print_table(titles, rows, columns, least, wraps, right)
    elif spare:
        first, *rest = spare
        kept = [number for number, title in enumerate(titles) if title != first]
        fewer = [[row[number] for number in kept] for row in rows]
        print_rows([titles[number] for number in kept], fewer, wraps=wraps, right=right, head=head, spare=rest)
    else:
        _print_paragraphs(titles, rows, columns, head or titles[:1])


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print labelled texts: one line each into a pipe, wrapped on a terminal; an empty text is left out."""
    fields = [(label, one_line(text)) for label, text in fields if text]
    indent = max((len(label) for label, _ in fields), default=0) + 2
    columns = shutil.get_terminal_size().columns
    for label, text in fields:
        if not sys.stdout.isatty():
            typer.echo(f"{label:<{indent}}{text}")
        elif columns < _SLIM:
            typer.echo(label)
            typer.echo(_wrapped(text, columns, first="  ", rest="  "))
        else:
            typer.echo(_wrapped(text, columns, first=f"{label:<{indent}}", rest=" " * indent))


def _print_paragraphs(
    titles: Sequence[str], rows: Sequence[Sequence[str]], columns: int, head: Collection[str]
) -> None:
    for row in rows:
        cells = dict(zip(titles, row, strict=True))
        typer.echo(_wrapped(": ".join(cells[title] for title in titles if title in head), columns, first="", rest="  "))
        for title, cell in cells.items():
            if cell and title not in head:
                typer.echo(_wrapped(f"{title}: {cell}", columns, first="  ", rest="    "))


def _wrapped(text: str, columns: int, *, first: str, rest: str) -> str:
    # A path or a name that is broken cannot be copied: the terminal does better.
    return textwrap.fill(
        text,
        max(columns, 20),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _print_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    columns: int,
    least: Sequence[int],
    wraps: Collection[str],
    right: Collection[str],
) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="")
    for title, width in zip(titles, least, strict=True):
        table.add_column(
            title,
            no_wrap=title not in wraps,
            min_width=width,
            overflow="fold",
            justify="right" if title in right else "left",
        )
    for row in rows:
        # Text, so that brackets in a cell are no markup.
        table.add_row(*map(Text, row))
    Console(width=columns).print(table)
