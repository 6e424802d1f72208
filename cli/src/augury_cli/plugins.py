"""`augury plugins`: which methods there are, and which of them may run."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augury_cli.check import check
from augury_cli.new import new
from augury_cli.quick import QuickCommand, QuickGroup
from augury_cli.tables import print_fields, print_json, print_rows

if TYPE_CHECKING:
    from augury.listing import Found
    from augury_train.description import Description, Needs, Option

app = typer.Typer(
    name="plugins",
    help="The methods that are installed and listed.",
    no_args_is_help=True,
    cls=QuickGroup,
    rich_markup_mode=None,
)


@app.command("list", cls=QuickCommand)
def list_methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects and nothing else.")] = False,
) -> None:
    """List every method that is installed or listed, without importing any."""
    from augury.registry import Register

    register = Register.load()
    methods = register.methods()
    if as_json:
        print_json([_facts(found) for found in methods])
    else:
        titles = ("name", "distribution", "version", "hooks", "status", "summary")
        wraps = ("distribution", "hooks", "summary")
        print_rows(titles, [_cells(found) for found in methods], wraps=wraps, head=("name", "status"))
    for line in [*(found.problem for found in methods if found.problem), *register.notes]:
        typer.echo(line, err=True)


@app.command("info", cls=QuickCommand)
def info(
    name: Annotated[str, typer.Argument(help="The method, as `augury plugins list` names it, or an alias.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print an object and nothing else.")] = False,
) -> None:
    """Tell all of one method: its package, options, needs and recipes. It is imported only if it may be run."""
    from augury.registry import Register
    from augury_train.description import describe

    register = Register.load()
    # What a method prints when it is imported is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        description = describe(name, register)
    if as_json:
        print_json(asdict(description))
    else:
        print_fields([*_about(description), *map(_option, description.options or ())])
    for line in register.notes:
        typer.echo(line, err=True)


@app.command("trust", cls=QuickCommand)
def trust(
    name: Annotated[str, typer.Argument(help="The method, as `augury plugins list` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Let an installed method be run: list it in your register, after showing where it comes from."""
    from augury.registry import Register
    from augury_cli.register_writing import changes

    register = Register.load()
    entry = register.candidate(name)
    found = next(found for found in register.methods() if found.name == name)
    source = f" from {entry.folder}" if entry.folder else ""
    typer.echo(f"{name}: {found.distribution} {found.version} ({found.entry_point}){source}")
    listed = found.entry
    if found.status == "ready" and entry == listed:
        typer.echo(f"It is listed already ({entry.layer} register, versions {entry.versions}).")
        return
    if listed is not None and found.status == "ready":
        typer.echo("It is listed already. Your register's entry would become what `trust` writes today:")
        for line in changes(listed, entry):
            typer.echo(f"  {line}")
    elif listed is not None:
        place = f" from {listed.folder}" if listed.folder else ""
        typer.echo(
            f"Listed is {listed.distribution} ({listed.entry_point}){place}, versions {listed.versions} "
            f"({listed.layer} register): this is another."
        )
    if not yes and not typer.confirm(f"Running it runs this package's code. Trust its versions {entry.versions}?"):
        typer.echo("Nothing was changed.")
        raise typer.Exit(1)
    register.trust(name)
    typer.echo(f"Listed in {register.user_file}.")


@app.command("untrust", cls=QuickCommand)
def untrust(
    name: Annotated[str, typer.Argument(help="The method, as `augury plugins list` names it.")],
) -> None:
    """Take a method off your register again, so that no run imports it; its package stays installed."""
    from augury.registry import Register

    register = Register.load()
    aliases = sorted(alias.name for alias in register.aliases.values() if alias.method == name)
    defaults = name in register.defaults
    now = register.untrust(name)
    typer.echo(f"{name}: no longer listed in {register.user_file}.")
    if now is not None and now.entry is not None:
        entry = now.entry
        typer.echo(
            f"It is listed still, in the {entry.layer} register: {entry.distribution}, versions {entry.versions}."
        )
        return
    left = [*(f"the alias `{alias}`" for alias in aliases), *(["its [defaults] table"] if defaults else [])]
    if left:
        typer.echo(f"What names it counts for nothing from now on: {', '.join(left)}.")


app.command("check", cls=QuickCommand)(check)
app.command("new", cls=QuickCommand)(new)


def _facts(found: Found) -> dict[str, Any]:
    facts = asdict(found)
    listed = facts.pop("entry") or {"hooks": ()}
    return facts | {key: listed.get(key, "") for key in ("versions", "layer", "title", "paper", "hooks")}


def _cells(found: Found) -> tuple[str, ...]:
    hooks = ", ".join(found.entry.hooks) if found.entry else ""
    return found.name, found.distribution, found.version, hooks, found.status, found.summary


def _about(description: Description) -> Iterator[tuple[str, str]]:
    """What there is to tell beside the options."""
    d = description
    listed = f" ({d.layer} register, versions {d.versions})" if d.layer else ""
    yield "name", d.name
    yield "title", d.title
    yield "summary", d.summary
    yield "paper", d.paper
    yield "distribution", f"{d.distribution} {d.version} ({d.entry_point})"
    yield "status", d.status + listed
    yield "problem", d.problem
    yield "hooks", ", ".join(d.hooks)
    yield "needs", "; ".join(_phrases(d.needs)) if d.needs else ""
    for alias, options in d.aliases.items():
        yield "alias", alias + _assigned(options)
    yield "defaults", _assigned(d.defaults)[1:]
    yield "recipes", _some(d.recipes, f"augury recipes list '{d.name}/*'")
    yield "card", d.card or ""


def _some(names: Sequence[str], how: str, most: int = 5) -> str:
    """The first names, and how to see the others."""
    others = f" and {len(names) - most} more: {how}" if len(names) > most else ""
    return ", ".join(names[:most]) + others


def _phrases(needs: Needs) -> Iterator[str]:
    if needs.views > 1:
        made = f", made by {', '.join(needs.view_pipelines)}" if needs.view_pipelines else ""
        yield f"{needs.views} views of each image{made}"
    if needs.views_alike:
        yield "no method that mixes (it compares views row by row)"
    if needs.pipelines is not None:
        shares = ", ".join(f"{share:g} from `{pipeline}`" for pipeline, share in needs.pipelines.items())
        yield f"shares of the rows by pipeline: {shares}"
    if needs.linear_classifier:
        yield "a classifier that is one nn.Linear"
    if needs.min_rows > 1:
        yield f"at least {needs.min_rows} rows in a batch"
    if needs.facts:
        yield f"{', '.join(needs.facts)} to be known"
    if needs.unmixed:
        yield "its place before methods that mix images"
    if needs.mixes:
        yield "its place after methods that want unmixed images (it mixes them)"
    if needs.mixes_hidden:
        yield "its place after all methods that mix (it mixes inside the network)"
    if needs.reads_images:
        yield "no method that mixes inside the network (it looks at the images)"
    if needs.sets_class_logits:
        yield "a criterion that reads class_logits, as augury's does (it sets them)"
    if needs.replaces_criterion:
        others = "" if needs.reads_class_logits else " or sets class_logits"
        yield f"no other method that replaces the criterion{others}"
    if needs.keeps_last:
        yield "all steps of the training (its network counts after the last one), no train.ema and no train.patience"


def _assigned(options: Mapping[str, Any]) -> str:
    """Options as the command line takes them, with the colon before them."""
    return ":" + ",".join(f"{key}={_value(value)}" for key, value in options.items()) if options else ""


def _option(option: Option) -> tuple[str, str]:
    default = "required" if option.required else f"default {_value(option.default)}"
    told = option.description
    where = ", in Python only" if option.in_python and not told.startswith("in Python") else ""
    return f"option {option.name}", f"{option.type}, {default}{where}" + (f": {told}" if told else "")


def _value(value: Any) -> str:
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
