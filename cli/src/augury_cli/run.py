"""`augury run` and `augury resume`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.settings import Dataset, Model, Recipe, Set, Trust, open_register, read_settings

if TYPE_CHECKING:
    from augury.training.trainer import Result


def run(
    dataset: Dataset = None,
    model: Model = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="METHOD[:OPTION=VALUE,...]", help="A method, in the order of application. Repeatable."
        ),
    ] = None,
    set_: Set = None,
    recipe: Recipe = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The run folder; it must not exist.")
    ] = Path("run"),
    trust: Trust = None,
) -> None:
    """Train a network, with any methods.

    augury run --dataset digits --with isda:lambda_0=0.25 --with dcutmix --set optim.epochs=5 --output runs/first
    """
    config = read_settings(recipe, dataset, model, methods, set_)
    register = open_register([m.name for m in config.methods], trust)
    from augury.training.trainer import train
    from augury_cli.progress import Terminal

    with Terminal(epochs=True) as terminal:
        result = train(config, output, register=register, reporter=terminal)
    _summary(result)


def resume(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of an interrupted run.")],
    trust: Trust = None,
) -> None:
    """Go on with a run from its newest checkpoint."""
    from augury.config import load_config

    config = load_config(folder / "config.json")
    register = open_register([m.name for m in config.methods], trust)
    from augury.training.trainer import resume as resume_run
    from augury_cli.progress import Terminal

    with Terminal(epochs=True) as terminal:
        result = resume_run(folder, register=register, reporter=terminal)
    _summary(result)


def _summary(result: Result) -> None:
    best, last = f"best   epoch {result.best_epoch:>3}", f"last   epoch {result.epochs:>3}"
    for title, val, test in (
        (best, result.best_val_top1, result.best_test_top1),
        (last, result.last_val_top1, result.last_test_top1),
    ):
        typer.echo(f"{title}   val top-1 {val:.2f} %" + (f"   test top-1 {test:.2f} %" if test is not None else ""))
    typer.echo(f"{result.seconds:.1f} s, {result.images_per_second:,.0f} images/s in training")
    typer.echo(
        f"weights {result.folder}/best.safetensors, metrics {result.folder}/metrics.jsonl, "
        f"pictures {result.folder}/figures"
    )
