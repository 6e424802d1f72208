"""Writes docs/settings.md from the settings' models: `python docs/settings.py`, or `make docs`.

tests/system/test_docs.py compares the file with what this makes of the models, so they cannot drift.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from augury_train.config import RunConfig

FILE = Path(__file__).with_suffix(".md")
HEAD = """# Every setting

Written from the program's own models by `make docs`; a test keeps it so. Do not edit it by hand.

A setting is given with `--set key=value`, or in a recipe (TOML) under the section that comes before the dot. A value is
read as TOML: `5`, `0.1`, `true`, `[80, 120]`, `"text"`; what is none of these is taken as text. "unset" is the default
of a setting that is decided later, as its line says. Lists and texts are quoted for the shell:
`--set "schedule.milestones=[80, 120]"`. A run folder's `config.json` holds all of them.
"""
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
NAMES = {"str": "text", "int": "whole number", "float": "number", "bool": "true, false"}


def render() -> str:
    """The whole file, Markdown."""
    parts = [HEAD]
    top = [(name, field) for name, field in RunConfig.model_fields.items() if _section(field) is None]
    parts.append(_table("The run", "", top))
    for name, field in RunConfig.model_fields.items():
        section = _section(field)
        if section is not None:
            title = f"`{name}`: {(section.__doc__ or '').strip().rstrip('.')}"
            parts.append(_table(title, f"{name}.", list(section.model_fields.items())))
    return "\n".join(parts)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _table(title: str, prefix: str, fields: list[tuple[str, FieldInfo]]) -> str:
    lines = [f"## {title}\n", "| setting | default | values | meaning |", "|---|---|---|---|"]
    for name, field in fields:
        cells = (f"`{prefix}{name}`", _default(field), _kind(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _kind(field: FieldInfo) -> str:
    return _named(field.annotation) + _bounds(field.metadata)


def _named(kind: Any) -> str:
    """What a type takes, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _named(arguments[0]) + _bounds(arguments[1:])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return "list: " + _named(arguments[0])
    if origin is dict:
        return "table"
    if origin is Union or isinstance(kind, type(int | None)):
        return ", or ".join(_named(part) for part in arguments if part is not type(None))
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "tables of " + ", ".join(f"`{name}`" for name in kind.model_fields)
    return NAMES[kind.__name__]


def _bounds(metadata: Any) -> str:
    return "".join(f" {sign} {_number(value)}" for sign, value in _found(metadata))


def _number(value: float) -> str:
    return "2^32" if value == 2**32 else f"{value:g}"


def _found(metadata: Any) -> Iterator[tuple[str, float]]:
    for part in metadata:
        if isinstance(part, FieldInfo):
            yield from _found(part.metadata)
        elif isinstance(part, annotated_types.BaseMetadata):
            for name, sign in SIGNS.items():
                if hasattr(part, name):
                    yield sign, getattr(part, name)


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
