"""The table of networks that is shipped, networks.csv: one line a network, written by `make networks`.

    name,parameters,features,classifiers,input,pretrained
    resnet18,11689512,512,Linear,3x224x224,.a1_in1k .a2_in1k

Several classifiers stand between +, pretrained weights each after a dot; a network that cannot be built has nothing in
the three columns that only building tells.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from augury_train.catalogue.facts import Backbone, Size, shape

FILE = "networks.csv"
COLUMNS = "name,parameters,features,classifiers,input,pretrained"
_HEAD = "# Written by `make networks` with timm "


@dataclass(frozen=True)
class Table:
    """The networks of one version of timm, and ours, by name in timm's order."""

    timm: str
    models: dict[str, Backbone]


@cache
def shipped() -> Table:
    """The table that is part of this package."""
    return parse(files("augury_train.catalogue").joinpath(FILE).read_text(encoding="utf-8"))


def parse(text: str) -> Table:
    """The table that a file's text holds."""
    first, columns, *lines = text.splitlines()
    assert first.startswith(_HEAD), first
    assert columns == COLUMNS, columns
    return Table(first.removeprefix(_HEAD), {backbone.name: backbone for backbone in map(_backbone, lines)})


def render(timm: str, backbones: Iterable[Backbone]) -> str:
    """The text of a table's file."""
    return "\n".join([f"{_HEAD}{timm}", COLUMNS, *map(_line, backbones), ""])


def _backbone(line: str) -> Backbone:
    name, parameters, features, classifiers, size, tags = line.split(",")
    return Backbone(
        name,
        shape(size.split("x")) if size else None,
        tuple(tag.removeprefix(".") for tag in tags.split()),
        Size(int(parameters), int(features), tuple(classifiers.split("+")) if classifiers else ())
        if parameters
        else None,
    )


def _line(backbone: Backbone) -> str:
    size = backbone.size
    told = ("", "", "") if size is None else (size.parameters, size.num_features, "+".join(size.classifiers))
    cells = (
        backbone.name,
        *told,
        "x".join(map(str, backbone.input_size or ())),
        " ".join(f".{tag}" for tag in backbone.tags),
    )
    return ",".join(map(str, cells))
