"""From flags to a run's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from augury.config import RunConfig
    from augury.registry import Register

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset", metavar="NAME|DIR", help="`digits`, or a folder with a subfolder of images for each class."
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Any model timm knows, and resnet20_cifar ... resnet110_cifar."),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting: optim.epochs=5. Repeatable.")
]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="METHOD", help="Let a method that no register lists run, this once. Repeatable."),
]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="A TOML file of settings; flags change them.")
]


def read_settings(
    recipe: Path | None,
    dataset: str | None,
    model: str | None,
    methods: list[str] | None,
    assignments: list[str] | None,
) -> RunConfig:
    """Settings from a recipe, changed by flags. Methods given by flags take the place of the recipe's."""
    from augury.config import assign, assign_text, parse_method, read_config, read_recipe

    values: dict[str, Any] = read_recipe(recipe) if recipe else {}
    if dataset is not None:
        assign(values, "data.dataset", dataset)
    if model is not None:
        assign(values, "model.name", model)
    if methods:
        values["methods"] = [{"name": name, "options": options} for name, options in map(parse_method, methods)]
    for assignment in assignments or []:
        assign_text(values, assignment)
    config = read_config(values, subject=str(recipe) if recipe else "config")
    if Path(config.data.dataset).is_dir():
        # A run must find its images again from whatever folder it is resumed.
        data = config.data.model_copy(update={"dataset": str(Path(config.data.dataset).resolve())})
        config = config.model_copy(update={"data": data})
    return config


def open_register(names: list[str], trust: list[str] | None) -> Register:
    """The register, after asking, on a terminal, about methods named that are installed but not listed."""
    from augury.registry import Register

    register = Register.load(trust=trust or [])
    for line in register.notes:
        typer.echo(line, err=True)
    unlisted = {found.name: found for found in register.methods() if found.status == "not trusted"}
    for name in names:
        if name in unlisted and sys.stdin.isatty() and sys.stderr.isatty():
            found = unlisted.pop(name)
            typer.echo(
                f"{name}: {found.distribution} {found.version} ({found.entry_point}) is installed but not listed.",
                err=True,
            )
            if typer.confirm("Running it runs this package's code. Trust it from now on?", err=True):
                register.trust(name)
    return register
