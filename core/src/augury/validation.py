"""pydantic's errors, said in augury's form: object, value, what is allowed, what to do."""

from __future__ import annotations

import json
import shlex
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from augury.errors import shown, unknown


class Strict(BaseModel):
    """A model that refuses fields it does not know, and does not change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


MOST = 20
"""Faults that are told one by one."""
LEFT_OUT = "must be left out"
"""What a line says where no value would do: then none is proposed."""


def explain(error: ValidationError, model: type[BaseModel], subject: str, noun: str, example: str) -> list[str]:
    """One line for each thing wrong.

    Args:
        error: what pydantic raised for `model`.
        subject: what the line begins with, a method's name say.
        noun: what a field is called there: "option", "key".
        example: how to set a field, with places for `{path}` and `{value}`: "--set {path}={value}".
    """
    lines = []
    for e in error.errors(include_url=False)[:MOST]:
        line = _line(dict(e), model, subject, noun)
        default = _default_at(model, e["loc"])
        if default is not None and LEFT_OUT not in line:
            line += f" Set it with {_shell(example, '.'.join(map(str, e['loc'])), default)}."
        lines.append(line)
    if (more := error.error_count() - MOST) > 0:
        lines.append(f"{subject}: {more} more {noun}s are wrong.")
    return lines


def _shell(example: str, path: str, value: Any) -> str:
    """The example as one types it; a list is TOML, and quoted."""
    if not isinstance(value, list):
        return example.format(path=path, value=value)
    *before, word = example.format(path=path, value=json.dumps(value)).split(" ", example.count(" "))
    return " ".join([*before, shlex.quote(word)])


def _line(e: dict[str, Any], model: type[BaseModel], subject: str, noun: str) -> str:
    path = ".".join(str(part) for part in e["loc"])
    if e["type"] == "extra_forbidden":
        parent = _model_at(model, e["loc"][:-1])
        known = list(parent.model_fields) if parent else []
        where = "".join(f"{part}: " for part in e["loc"][:-1])
        return f"{subject}: {where}" + unknown(noun, str(e["loc"][-1]), known, label=f"{noun.capitalize()}s")
    got = "nothing" if e["type"] == "missing" else shown(e["input"])
    what = f"{noun} `{path}`" if path else noun + "s"
    return f"{subject}: {what} must be {_allowed(e)}, got {got}."


def _allowed(e: dict[str, Any]) -> str:
    context = e.get("ctx", {})
    bounds = {
        "greater_than_equal": (">=", "ge"),
        "greater_than": (">", "gt"),
        "less_than_equal": ("<=", "le"),
        "less_than": ("<", "lt"),
    }
    if e["type"] in bounds:
        sign, key = bounds[e["type"]]
        return f"{sign} {context[key]:g}"
    if e["type"] == "too_long":
        return f"at most {context['max_length']} of them"
    if e["type"] in ("literal_error", "enum"):
        return f"one of {context['expected']}"
    kind = e["type"].split("_")[0]
    names = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "text",
        "missing": "given",
    }
    names |= {"list": "a list", "dict": "a table", "tuple": "a list", "finite": "a finite number"}
    if kind in names:
        return names[kind]
    return str(e["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The model that `path` leads to, None where it leads to none."""
    current: Any = model
    for part in path:
        field = current.model_fields.get(part)
        current = field.annotation if field is not None else None
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return None
    return current


def _default_at(model: type[BaseModel], path: tuple[Any, ...]) -> Any:
    """The default of the field that `path` leads to, None where it has none."""
    parent = _model_at(model, path[:-1])
    field = parent.model_fields.get(path[-1]) if parent and path else None
    if field is None or field.is_required() or field.default_factory is not None:
        return None
    # A whole section is no value to type.
    return None if isinstance(field.default, BaseModel) else field.default
