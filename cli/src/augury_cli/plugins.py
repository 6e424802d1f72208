"""`augury plugins`: which methods there are, and which of them may run."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augury_cli.quick import QuickCommand, QuickGroup

if TYPE_CHECKING:
    from augury.registry import Found

app = typer.Typer(
    name="plugins",
    help="The methods that are installed and listed.",
    no_args_is_help=True,
    cls=QuickGroup,
    rich_markup_mode=None,
)

_COLUMNS = ("name", "distribution", "version", "hooks", "status", "summary")
# A table of these columns is not readable in less.
_WIDE = 100


@app.command("list", cls=QuickCommand)
def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects and nothing else.")] = False,
) -> None:
    """List every method that is installed or listed, without importing any."""
    from augury.registry import Register

    register = Register.load()
    methods = register.methods()
    if as_json:
        typer.echo(json.dumps([_facts(found) for found in methods], indent=2))
    elif not sys.stdout.isatty():
        _print_lines(methods)
    elif (width := shutil.get_terminal_size().columns) < _WIDE:
        _print_paragraphs(methods)
    else:
        _print_table(methods, width)
    for line in [*(found.problem for found in methods if found.problem), *register.notes]:
        typer.echo(line, err=True)


@app.command("trust", cls=QuickCommand)
def trust(
    name: Annotated[str, typer.Argument(help="The method, as `augury plugins list` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Let an installed method be run: list it in your register, after showing where it comes from."""
    from augury.registry import Register

    register = Register.load()
    entry = register.candidate(name)
    found = next(found for found in register.methods() if found.name == name)
    typer.echo(f"{name}: {found.distribution} {found.version} ({found.entry_point})")
    if found.status == "ready":
        typer.echo(f"It is listed already ({entry.layer} register, versions {entry.versions}).")
        return
    if not yes and not typer.confirm(f"Running it runs this package's code. Trust its versions {entry.versions}?"):
        typer.echo("Nothing was changed.")
        raise typer.Exit(1)
    register.trust(name)
    typer.echo(f"Listed in {register.user_file}.")


def _facts(found: Found) -> dict[str, Any]:
    facts = asdict(found)
    listed = facts.pop("entry") or {"hooks": ()}
    return facts | {key: listed.get(key, "") for key in ("versions", "layer", "title", "paper", "hooks", "summary")}


def _cells(found: Found) -> tuple[str, ...]:
    hooks, summary = (", ".join(found.entry.hooks), found.entry.summary) if found.entry else ("", "")
    return found.name, found.distribution, found.version, hooks, found.status, summary


def _print_lines(methods: list[Found]) -> None:
    """One line a method, however long."""
    rows = [_COLUMNS, *(_cells(found) for found in methods)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_paragraphs(methods: list[Found]) -> None:
    for found in methods:
        name, distribution, version, hooks, status, summary = _cells(found)
        typer.echo(f"{name}: {status}")
        for text in (f"{distribution} {version}", hooks, summary):
            if text:
                typer.echo(f"  {text}")


def _print_table(methods: list[Found], width: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in _COLUMNS:
        table.add_column(title, no_wrap=title in ("name", "version", "status"))
    for found in methods:
        table.add_row(*map(Text, _cells(found)))
    Console(width=width).print(table)
