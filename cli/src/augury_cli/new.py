"""`augury plugins new`: a package for a method of one's own."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from augury.register_file import Entry
    from augury_authoring.scaffold import Package


def new(
    name: Annotated[
        str, typer.Argument(help="What a run will call the method: lower-case words, joined by _, say feature_noise.")
    ],
    hooks: Annotated[
        list[str] | None,
        typer.Option(
            "--hook",
            metavar="HOOK",
            help="What it implements: pre_train_stage, augment_batch, compute_loss, post_step or post_epoch. Again for "
            "more. [default: augment_batch]",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORM",
            help="Start from the nearest whole method instead: mixing (images and labels), criterion (a loss of its "
            "own), regulariser (a term of the loss) or two-views (two versions of each image).",
        ),
    ] = None,
    path: Annotated[
        Path | None,
        typer.Option(
            "--path", metavar="DIR", help="Where the package goes, a new or empty folder. [default: augury-NAME]"
        ),
    ] = None,
) -> None:
    """Write a complete package with a method that works, to be made into your own, and trust it on this machine.

    augury plugins new feature_noise --hook augment_batch --hook compute_loss

    augury plugins new my_mix --from mixing
    """
    from augury.registry import Register
    from augury_authoring.scaffold import new_package

    register = Register.load()
    made = new_package(name, hooks or (), form=form, path=path, register=register)
    _tell(made, _list(made.entry, register.user_file))


def _list(entry: Entry, user_file: Path) -> str:
    """List the package in the user's register. Return why that failed and what to do, "" where it did not."""
    from augury.errors import AuguryError
    from augury_cli.register_writing import add_entry

    try:
        add_entry(user_file, entry)
    except AuguryError as error:
        return f"{error} {entry.name} is not listed yet: once it is installed, `augury plugins trust {entry.name}`."
    return ""


def _tell(made: Package, problem: str) -> None:
    folder, entry = shlex.quote(str(made.folder)), made.entry
    hooks = ", ".join(made.hooks)
    typer.echo(f"Wrote {entry.distribution}, a package with the method {entry.name} ({hooks}), to {made.folder}:")
    for file in made.files:
        typer.echo(f"  {file}")
    if problem:
        typer.echo(problem, err=True)
    else:
        typer.echo(
            f"Your register lists what is installed from there, versions {entry.versions}: what you made, you trust."
        )
    typer.echo("\nNext:")
    extra = shlex.quote(f"{made.folder}[test]")
    at = _commands()
    for command in (
        f"{at}python -m pip install -e {extra}",
        *([f"{at}augury plugins trust {entry.name}"] if problem else []),
        f"{at}python -m pytest {folder}",
        f"{at}augury plugins list",
        f"{at}augury run --recipe {entry.name}/digits",
    ):
        typer.echo(f"  {command}")


def _commands() -> str:
    """What stands before a command of this environment: nothing where the shell finds it, else its folder."""
    here = Path(sys.executable).parent
    found = shutil.which("python")
    if found is not None and Path(found).parent == here:
        return ""
    with contextlib.suppress(ValueError):
        here = here.relative_to(Path.cwd())
    return shlex.quote(f"{here}{os.sep}")
