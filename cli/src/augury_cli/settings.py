"""From flags to a run's settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from augury_cli.processes import note
from augury_train.training.launch import place

if TYPE_CHECKING:
    from augury.registry import Register
    from augury_train.config import RunConfig

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="NAME|DIR",
        help="digits, fashion_mnist, cifar10, cifar100, svhn, or a folder with a subfolder of images for each class.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Any model timm knows, and the papers' for small images (augury backbones '*_cifar').",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="METHOD[:OPTION=VALUE,...]",
        help="A method, in the order of application. Repeatable. Takes the place of all of a recipe's.",
    ),
]
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Start from the weights that timm downloads for the model.")
]
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        metavar="FILE|RUN",
        help="Start from these weights: a file (safetensors, or a timm checkpoint), an exported folder, or a run's "
        "best; its network, too, where none is named.",
    ),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be read, instead of stopping.")
]
SaveEvery = Annotated[
    int | None,
    typer.Option("--save-every", metavar="STEPS", min=1, help="Write a checkpoint every so many steps, too."),
]
OnNan = Annotated[
    str | None,
    typer.Option(
        "--on-nan",
        metavar="stop|skip",
        help="Where a step's loss or gradient is not finite: stop (as by default), or skip it: nothing of it remains.",
    ),
]
AutoBatch = Annotated[
    bool, typer.Option("--auto-batch", help="Where memory runs out, go on with half the images at once.")
]
Subset = Annotated[
    str | None,
    typer.Option("--subset", metavar="FILE", help="Train on the images that it names (augury uncertainty --keep)."),
]
SyncBn = Annotated[bool, typer.Option("--sync-bn", help="Let BatchNorm see the images of all processes as one batch.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else on stdout.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting: optim.epochs=5; or a method's option: methods.resmooth.prob=0.3. Repeatable.",
    ),
]
Trust = Annotated[
    list[str] | None,
    typer.Option("--trust", metavar="METHOD", help="Let a method that no register lists run, this once. Repeatable."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="NAME|FILE", help="A recipe (augury recipes list), or a TOML file; flags change it."
    ),
]


def read_settings(
    recipe: str | None,
    dataset: str | None,
    model: str | None,
    methods: list[str] | None,
    assignments: list[str] | None,
    *,
    pretrained: bool = False,
    init_from: str | None = None,
    skip_bad: bool = False,
    subset: str | None = None,
    save_every: int | None = None,
    on_nan: str | None = None,
    auto_batch: bool = False,
    sync_bn: bool = False,
    values: dict[str, Any] | None = None,
    file: Path | None = None,
) -> RunConfig:
    """Settings from a recipe, or from the `values` read from a `file`, changed by flags. Methods given by flags take
    the place of the recipe's."""
    from augury_train.config import assign, assign_text, parse_method, read_config, read_recipe

    values = values or {}
    if recipe:
        from augury_train.recipes import find_recipe

        values = read_recipe(find_recipe(recipe))
    if dataset is not None:
        assign(values, "data.dataset", dataset)
    if model is not None:
        assign(values, "model.name", model)
    if methods:
        _tell_replaced(recipe, values.get("methods"), methods)
        values["methods"] = [{"name": name, "options": options} for name, options in map(parse_method, methods)]
    _assign_start(values, pretrained, init_from)
    if skip_bad:
        assign(values, "data.skip_bad_images", True)
    if subset is not None:
        assign(values, "data.subset", subset)
    if save_every is not None:
        assign(values, "train.save_every", save_every)
    if on_nan is not None:
        assign(values, "train.on_nan", on_nan)
    if auto_batch:
        assign(values, "train.auto_batch", True)
    if sync_bn:
        assign(values, "train.sync_bn", True)
    for assignment in assignments or []:
        assign_text(values, assignment)
    config = read_config(values, subject=str(recipe or file or "config"))
    if config.model.init_from is None:
        return config
    from augury_train.backbones.starting import with_own_network

    return with_own_network(config)


def _assign_start(values: dict[str, Any], pretrained: bool, init_from: str | None) -> None:
    """The weights to start from, in place of a recipe's."""
    from augury.errors import UsageError
    from augury_train.config import assign

    if pretrained and init_from is not None:
        raise UsageError("--pretrained and --init-from are two sets of weights to start from. Leave out one of them.")
    if pretrained or init_from is not None:
        assign(values, "model.pretrained", pretrained)
        assign(values, "model.init_from", init_from)


def _tell_replaced(recipe: str | None, before: Any, methods: list[str]) -> None:
    """Say that options of a recipe's method are gone where `--with` names the method anew."""
    from augury_train.config import parse_method

    named = [parse_method(text)[0] for text in methods]
    for method in before if isinstance(before, list) else []:
        options = method.get("options") if isinstance(method, dict) else None
        if isinstance(options, dict) and options and method.get("name") in named:
            told = ", ".join(f"{key}={value}" for key, value in options.items())
            name = method["name"]
            note(
                f"--with {name} takes the place of the recipe's, whose options ({told}) do not count. "
                f"To change one of them: --set methods.{name}.OPTION=VALUE"
            )


@contextmanager
def recipes_network(recipe: str | None, config: RunConfig) -> Iterator[None]:
    """Say what to do where it is the recipe's network that does not exist here."""
    from augury.errors import UsageError

    try:
        yield
    except UsageError as error:
        if recipe is None:
            raise
        # Only now: that a network exists, training itself finds out.
        from augury_train.catalogue import absent
        from augury_train.recipes import describe, find_recipe

        problem = absent([config.model.name]).get(describe(recipe, find_recipe(recipe)).model)
        if problem is None:
            raise
        raise UsageError(f"{error}\nrecipe {recipe} {problem}") from None


def open_register(names: list[str], trust: list[str] | None) -> Register:
    """The register, after asking, on a terminal, about methods named that are installed but not listed."""
    from augury.registry import Register

    register = Register.load(trust=trust or [])
    for line in register.notes:
        note(line)
    unlisted = {found.name: found for found in register.methods() if found.status == "not trusted"}
    for name in names:
        if name in unlisted and place()[1] == 1 and sys.stdin.isatty() and sys.stderr.isatty():
            found = unlisted.pop(name)
            typer.echo(
                f"{name}: {found.distribution} {found.version} ({found.entry_point}) is installed but not listed.",
                err=True,
            )
            if typer.confirm("Running it runs this package's code. Trust it from now on?", err=True):
                register.trust(name)
    return register
