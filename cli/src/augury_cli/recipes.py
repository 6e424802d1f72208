"""`augury recipes`: the settings that methods bring, ready to be run."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.quick import QuickCommand, QuickGroup
from augury_cli.tables import print_json, print_rows

if TYPE_CHECKING:
    from augury_train.recipes import Recipe

app = typer.Typer(
    name="recipes",
    help="The recipes that the installed and listed methods bring.",
    no_args_is_help=True,
    cls=QuickGroup,
    rich_markup_mode=None,
)


@app.command("list", cls=QuickCommand)
def list_recipes(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[GLOB]", help="Those of such a name: 'isda/cifar10-*'.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="GLOB", help="Those that use this method, or come with it.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", metavar="GLOB", help="Those for this data set.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="GLOB", help="Those for this model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects and nothing else.")] = False,
) -> None:
    """List recipes, with the number that the paper reports, without importing any method.

    Run one with: augury run --recipe NAME
    """
    from augury.registry import Register
    from augury_train.catalogue import absent
    from augury_train.recipes import recipes, select

    register = Register.load()
    chosen = select(recipes(register), name=pattern, method=method, dataset=dataset, model=model)
    without = absent({recipe.model for recipe in chosen if not recipe.problem}, ask=False)
    chosen = [replace(recipe, problem=recipe.problem or without.get(recipe.model, "")) for recipe in chosen]
    if as_json:
        print_json([{**asdict(recipe), "path": str(recipe.path)} for recipe in chosen])
    else:
        titles = ("name", "data set", "model", "methods", "published", "title")
        print_rows(
            titles,
            [_cells(recipe) for recipe in chosen],
            wraps=("methods", "published", "title"),
            head=("name", "published"),
            # Names and titles tell them too, where the papers' runs are concerned.
            spare=("data set", "model", "methods"),
        )
    for line in register.notes:
        typer.echo(line, err=True)


@app.command("show", cls=QuickCommand)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="The recipe, as `augury recipes list` names it.")],
) -> None:
    """Print a recipe's file as it is, on stderr its path and what keeps it from being run.

    Bytes that are no UTF-8 text are written out, \\xff say.
    """
    from augury.errors import AuguryError, plain
    from augury.outside import read_bytes
    from augury_train.catalogue import absent
    from augury_train.recipes import describe, find_recipe

    path = find_recipe(name)
    try:
        content = read_bytes(path)
    except (OSError, ValueError) as error:
        raise AuguryError(f"recipe {path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    # Bytes that are no text are written out, wherever they go; no recipe can be read that has them.
    text = content.decode("utf-8", "backslashreplace")
    typer.echo(f"# {plain(str(path))}", err=True)
    typer.echo((_harmless(text) if sys.stdout.isatty() else text).encode(), nl=False)
    recipe = describe(name, path)
    if problem := recipe.problem or absent([recipe.model]).get(recipe.model):
        typer.echo(f"{name}: {problem}", err=True)


def _harmless(text: str) -> str:
    """A file's text for a terminal, which it is not to steer."""
    from augury.errors import plain

    lines = text.replace("\r\n", "\n")
    return "\t".join(map(plain, lines.split("\t")))


def _cells(recipe: Recipe) -> tuple[str, ...]:
    if recipe.problem and not recipe.model:
        return recipe.name, "-", "-", "-", "-", f"broken: {recipe.problem}"
    published = "-" if recipe.published is None else str(recipe.published)
    return (
        recipe.name,
        recipe.dataset,
        recipe.model,
        "+".join(recipe.methods) or "-",
        published or "-",
        recipe.problem or recipe.title or "-",
    )
