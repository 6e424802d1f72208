"""`augury backbones`: which networks there are."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.tables import print_json, print_rows

if TYPE_CHECKING:
    from augury.catalogue import Backbone


def backbones(
    pattern: Annotated[
        str, typer.Argument(help="A glob over names, 'resnet*_cifar'; with a dot, over name.weights: '*.*in12k*'.")
    ] = "*",
    parameters: Annotated[
        bool,
        typer.Option(
            "--parameters", help="Tell parameters, feature width and whether the head is linear, of 30 models at most."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects and nothing else.")] = False,
) -> None:
    """List the models that --model takes.

    With each its input size (channels, height, width) and pretrained weights, the default ones first.

    augury backbones 'resnet*_cifar' --parameters
    """
    from augury.catalogue import backbones as find

    found = find(pattern, measure=parameters)
    if as_json:
        print_json([_facts(backbone, parameters) for backbone in found])
        return
    sizes = ("parameters", "features", "linear head") if parameters else ()
    print_rows(
        ("name", "input", *sizes, "pretrained"),
        [_cells(backbone, parameters) for backbone in found],
        wraps=("pretrained",),
        right=("parameters", "features"),
        head=("name", "input"),
    )


def _facts(backbone: Backbone, parameters: bool) -> dict[str, object]:
    facts = asdict(backbone)
    size = facts.pop("size")
    if parameters:
        facts |= size or dict.fromkeys(("parameters", "num_features", "linear"))
    return facts


def _cells(backbone: Backbone, parameters: bool) -> tuple[str, ...]:
    shape = "x".join(map(str, backbone.input_size)) if backbone.input_size else "-"
    # Weights may have no name of their own.
    tags = ", ".join(tag or "yes" for tag in backbone.tags) or "-"
    if not parameters:
        return backbone.name, shape, tags
    size = backbone.size
    if size is None:
        return backbone.name, shape, "-", "-", "-", tags
    linear = "yes" if size.linear else "no"
    return backbone.name, shape, f"{size.parameters:,}", str(size.num_features), linear, tags
