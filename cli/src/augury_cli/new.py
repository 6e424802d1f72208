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
    from augury.scaffold import Package


def new(
    name: Annotated[
        str, typer.Argument(help="What a run will call the method: lower-case words, joined by _, say feature_noise.")
    ],
    hooks: Annotated[
        list[str] | None,
        typer.Option(
            "--hook",
            metavar="HOOK",
            help="What it implements: pre_train_stage, augment_batch, compute_loss or post_epoch. Again for more. "
            "[default: augment_batch]",
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
    """
    from augury.scaffold import DEFAULT_HOOKS, new_package

    made = new_package(name, hooks or DEFAULT_HOOKS, path=path)
    _tell(made)


def _tell(made: Package) -> None:
    folder, entry = shlex.quote(str(made.folder)), made.entry
    hooks = ", ".join(made.hooks)
    typer.echo(f"Wrote {entry.distribution}, a package with the method {entry.name} ({hooks}), to {made.folder}:")
    for file in made.files:
        typer.echo(f"  {file}")
    if made.problem:
        typer.echo(made.problem, err=True)
    else:
        typer.echo(
            f"Your register lists what is installed from there, versions {entry.versions}: what you made, you trust."
        )
    typer.echo("\nNext:")
    extra = shlex.quote(f"{made.folder}[test]")
    at = _commands()
    for command in (
        f"{at}python -m pip install -e {extra}",
        *([f"{at}augury plugins trust {entry.name}"] if made.problem else []),
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
