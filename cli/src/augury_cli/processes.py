"""`--processes`: the same command several times, and what only the first of them says."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augury.errors import one_line
from augury_train.training.launch import launch, place

if TYPE_CHECKING:
    from augury_cli.progress import Terminal

Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        metavar="N",
        help="Train in so many processes on this machine, one for each GPU, or sharing the cores.",
    ),
]


def in_processes(processes: int | None, folder: Path) -> None:
    """Start this command in so many processes and end with them; return where it is to go on in this one.

    Args:
        processes: how many; one and None are this one.
        folder: the run's.
    """
    if processes is None or processes == 1:
        return

    def go_on() -> str:
        if not (folder / "config.json").exists():
            return "Nothing was kept: start it again."
        return f"Go on with: {shlex.join(['augury', 'resume', str(folder), '--processes', str(processes)])}"

    # Not what lies in the present folder, as `-m` alone would.
    command = [sys.executable, "-P", "-m", "augury_cli", *_without_processes(sys.argv[1:])]
    raise typer.Exit(launch(command, processes, go_on))


def _without_processes(arguments: list[str]) -> list[str]:
    kept, left_out = [], False
    for argument in arguments:
        if argument == "--processes":
            left_out = True
        elif left_out or argument.startswith("--processes="):
            left_out = False
        else:
            kept.append(argument)
    return kept


def refuse_several(arguments: list[str]) -> None:
    """End here where torchrun or the like has started several processes of a command that knows nothing of it."""
    rank, size = place()
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if size > 1 and command not in ("run", "resume", ""):
        if rank == 0:
            typer.echo(f"augury {command} works in one process, and this is one of {size}. Start it alone.", err=True)
        sys.exit(2)


def is_first() -> bool:
    """Whether this process speaks for all that train together."""
    return place()[0] == 0


def note(line: str) -> None:
    """Say it on stderr, once for all processes."""
    if is_first():
        typer.echo(one_line(line), err=True)


@contextmanager
def watching() -> Iterator[Terminal | None]:
    """The reporter of a run: bars and lines of the first process, nobody of the others."""
    if not is_first():
        yield None
        return
    from augury_cli.progress import Terminal

    with Terminal(epochs=True) as terminal:
        yield terminal


def say(text: str, error: BaseException | None = None) -> None:
    """Say on stderr why the command ends, once for all processes."""

    def tell(words: str) -> None:
        typer.echo(words, err=True)

    rank, size = place()
    if size == 1:
        tell(text)
    elif error is None and not _met():
        # A stop that comes while they start: importing what they meet with could be what it has interrupted.
        if rank == 0:
            tell(text)
    else:
        try:
            from augury_train.training.processes import last_words
        except Exception:
            # What failed may be this very import.
            tell(text if rank == 0 else f"process {rank}: {text}")
            return
        last_words(text, tell, error)


def _met() -> bool:
    """Whether this process has met the others."""
    met = getattr(sys.modules.get("augury_train.training.processes"), "met", None)
    return met is not None and met()
