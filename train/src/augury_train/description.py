"""All that can be told of one method: its package, what the registers say, its options and needs."""

from __future__ import annotations

import importlib.metadata
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augury.discovery import source_folder
from augury.errors import UsageError, unknown
from augury.listing import Found
from augury.register_file import one_line
from augury.registry import Register
from augury_train.recipes import package_folders, recipes

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from augury.method import Method

_KINDS = {float: "number", int: "whole number", bool: "true or false", str: "text", type(None): "unset"}
_KINDS |= {list: "list", tuple: "list", dict: "table"}
_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "a multiple of"}


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        type: what it takes, in words, with its range.
        default: as JSON can say it; None too where it is required.
        in_python: whether it can be given in Python alone.
    """

    name: str
    type: str
    default: Any
    required: bool
    in_python: bool
    description: str


@dataclass(frozen=True)
class Needs:
    """What a method asks of a run; the fields are those of `augury.Method`.

    Attributes:
        pipelines: the share of rows of each pipeline that it asks for with default options, None when it does not care.
        replaces_criterion: whether it is the criterion, of which a composition has one.
    """

    views: int
    view_pipelines: tuple[str, ...]
    views_alike: bool
    linear_classifier: bool
    min_rows: int
    facts: tuple[str, ...]
    mixes: bool
    mixes_hidden: bool
    unmixed: bool
    reads_images: bool
    sets_class_logits: bool
    reads_class_logits: bool
    keeps_last: bool
    pipelines: Mapping[str, float] | None
    replaces_criterion: bool


@dataclass(frozen=True)
class Description:
    """One method. `options` and `needs` are None for one that may not be imported, or cannot be.

    Attributes:
        status: as `augury.registry.Found`.
        layer: whose register lists it, "" for none.
        problem: one line that says why it cannot be run and what to do, "" when it can.
        aliases: other names for it, with their options.
        defaults: options that the registers give it.
        recipes: the names of those its package brings.
        card: its page, where one is on this machine.
    """

    name: str
    distribution: str
    version: str
    entry_point: str
    status: str
    problem: str
    layer: str = ""
    versions: str = ""
    title: str = ""
    paper: str = ""
    hooks: tuple[str, ...] = ()
    summary: str = ""
    aliases: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[Option, ...] | None = None
    needs: Needs | None = None
    recipes: tuple[str, ...] = ()
    card: str | None = None


def describe(name: str, register: Register) -> Description:
    """Tell all of one method; it is imported only if it may be run.

    Args:
        name: a method's name, or an alias's.

    Raises:
        UsageError: no method has that name.
    """
    alias = register.aliases.get(name)
    methods = {found.name: found for found in register.methods()}
    found = methods.get(alias.method if alias else name)
    if found is None:
        raise UsageError(unknown("method", name, [*methods, *register.aliases], label="Installed or listed"))
    options, needs, hooks, problem = _imported(found, register)
    entry = found.entry
    listed = {key: getattr(entry, key) for key in ("layer", "versions", "title", "paper")} if entry else {}
    return Description(
        name=found.name,
        distribution=found.distribution,
        version=found.version,
        entry_point=found.entry_point,
        status=found.status,
        problem=problem,
        hooks=hooks or (entry.hooks if entry else ()),
        summary=found.summary,
        aliases={a.name: plain(a.options) for a in register.aliases.values() if a.method == found.name},
        defaults=plain(register.defaults.get(found.name, {})),
        options=options,
        needs=needs,
        recipes=tuple(recipe.name for recipe in recipes(register) if recipe.owner == found.name),
        card=_card(found),
        **listed,
    )


def _imported(found: Found, register: Register) -> tuple[tuple[Option, ...] | None, Needs | None, tuple[str, ...], str]:
    """Options, needs and hooks as the class has them, and what is wrong."""
    try:
        cls = register.load_class(found.name)
    except UsageError as error:
        return None, None, (), one_line(str(error))
    from augury.hookspecs import HOOKS
    from augury.method import hook_implementations

    fields = cls.Options.model_fields
    implemented = hook_implementations(cls)
    hooks = tuple(hook for hook in HOOKS if hook in implemented)
    return tuple(_option(name, info) for name, info in fields.items()), _needs(cls), hooks, ""


def _option(name: str, info: FieldInfo) -> Option:
    default = "computed" if info.default_factory else None if info.is_required() else plain(info.default)
    return Option(
        name,
        _kind(info.annotation, _range(info.metadata)),
        default,
        info.is_required(),
        info.exclude is True,
        one_line(info.description or ""),
    )


def _needs(cls: type[Method]) -> Needs:
    from augury.method import replaces_criterion

    # One that has required options cannot be asked before they are given.
    required = any(info.is_required() for info in cls.Options.model_fields.values())
    shares = None if required else cls.pipelines(cls.Options())
    return Needs(
        views=cls.views,
        view_pipelines=tuple(cls.view_pipelines),
        views_alike=bool(cls.views_alike),
        linear_classifier=cls.linear_classifier,
        min_rows=cls.min_rows,
        facts=tuple(cls.facts),
        mixes=cls.mixes,
        mixes_hidden=cls.mixes_hidden,
        unmixed=cls.unmixed,
        reads_images=cls.reads_images,
        sets_class_logits=cls.sets_class_logits,
        reads_class_logits=cls.reads_class_logits,
        keeps_last=cls.keeps_last,
        pipelines=None if shares is None else dict(shares),
        replaces_criterion=replaces_criterion(cls),
    )


def _kind(annotation: Any, bounds: str = "") -> str:
    """A type in words, with its bounds, which are not those of None."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind(arguments[0], _range(arguments[1:]) + bounds)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        parts = sorted(arguments, key=lambda part: part is type(None))
        return " or ".join(_kind(part, "" if part is type(None) else bounds) for part in parts)
    if origin in (list, tuple, set, frozenset):
        items = dict.fromkeys(_kind(part) for part in arguments if part is not Ellipsis)
        return f"list of {', '.join(items)}{bounds}"
    name = _KINDS.get(origin or annotation) or getattr(annotation, "__name__", None) or str(annotation)
    return f"{name}{bounds}"


def _range(metadata: typing.Iterable[Any]) -> str:
    """The bounds among a field's metadata, in words with a space before them."""
    parts = []
    for mark in metadata:
        parts += [f"{sign} {bound}" for key, sign in _BOUNDS.items() if (bound := getattr(mark, key, None)) is not None]
        inner = getattr(mark, "metadata", ())  # of a pydantic Field inside Annotated
        parts += [_range(inner).strip()] if inner else []
        if getattr(mark, "allow_inf_nan", None) is False:
            parts.append("finite")
    return " " + ", ".join(parts) if parts else ""


def plain(value: Any) -> Any:
    """The value as JSON can say it."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _card(found: Found) -> str | None:
    """README.md of the project that an editable install points to, else of the package."""
    try:
        project, editable = source_folder(importlib.metadata.distribution(found.distribution))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    places = [Path(project)] if editable else []
    cards = [folder / "README.md" for folder in (*places, *package_folders(found.entry_point))]
    return next((str(card) for card in cards if card.is_file()), None)
