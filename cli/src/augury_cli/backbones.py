"""`augury backbones`: which networks there are."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from augury_cli.tables import print_json, print_rows

if TYPE_CHECKING:
    from augury_train.catalogue import Backbone, Size


def backbones(
    pattern: Annotated[
        str, typer.Argument(help="A glob over names, 'resnet*_cifar'; with a dot, over name.weights: '*.*in12k*'.")
    ] = "*",
    linear_head: Annotated[
        bool, typer.Option("--linear-head", help="Those alone whose classifier is one nn.Linear.")
    ] = False,
    max_params: Annotated[
        str | None,
        typer.Option("--max-params", metavar="COUNT", help="Those of at most so many parameters: 30M, 270k."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--for", metavar="METHOD,METHOD", help="Those that all of these methods can train.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list of objects and nothing else.")] = False,
) -> None:
    """List the models that --model takes.

    With each its parameters, input size (channels, height, width), the width of its features, what its classifier is,
    and its pretrained weights, the default ones first.

    augury backbones 'resnet*' --max-params 30M --for isda
    """
    from augury_train.catalogue import backbones as find
    from augury_train.catalogue import parameters_in, select, unknown_sizes

    most = None if max_params is None else parameters_in(max_params)
    needs = None if methods is None else _needs(methods)
    chosen = select(find(pattern), max_params=most, linear_head=linear_head, methods=needs)
    if as_json:
        print_json([_facts(backbone) for backbone in chosen.backbones])
    else:
        _print(chosen.backbones)
    if chosen.unknown:
        typer.echo(unknown_sizes(chosen.unknown), err=True)


def _needs(names: str) -> dict[str, bool]:
    """By method whether it needs a classifier that is one nn.Linear."""
    from augury.registry import Register

    register = Register.load()
    # What a method prints when it is imported is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        return {name: register.needs_linear(name) for name in map(str.strip, names.split(","))}


def _print(found: list[Backbone]) -> None:
    titles = ("name", "parameters", "input", "features", "head", "pretrained")
    print_rows(
        titles,
        [_cells(backbone) for backbone in found],
        wraps=("pretrained",),
        right=("parameters", "features"),
        head=("name", "parameters"),
        spare=() if any(backbone.tags for backbone in found) else ("pretrained",),
    )


def _facts(backbone: Backbone) -> dict[str, object]:
    facts = asdict(backbone)
    size = facts.pop("size") or dict.fromkeys(("parameters", "num_features", "classifiers"))
    return {**facts, **size, "linear": None if backbone.size is None else backbone.size.linear}


def _cells(backbone: Backbone) -> tuple[str, ...]:
    shape = "x".join(map(str, backbone.input_size)) if backbone.input_size else "-"
    # Weights may have no name of their own.
    tags = ", ".join(tag or "yes" for tag in backbone.tags) or "-"
    size = backbone.size
    if size is None:
        return backbone.name, "-", shape, "-", "-", tags
    return backbone.name, f"{size.parameters:,}", shape, str(size.num_features), _head(size), tags


def _head(size: Size) -> str:
    if size.linear:
        return "linear"
    return {0: "none", 1: "other", 2: "two heads"}.get(len(size.classifiers), f"{len(size.classifiers)} heads")
