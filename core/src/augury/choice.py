"""Which methods a run uses: found, their options read, and every conflict and missing need told before anything is
made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from torch import nn

from augury.errors import UsageError
from augury.method import Method, Spec, check_method, replaces_criterion
from augury.registry import Register
from augury.validation import explain

MethodLike = str | tuple[str, Mapping[str, Any]] | type[Method] | tuple[type[Method], Mapping[str, Any]] | Method


@dataclass(frozen=True)
class Chosen:
    """One method of a composition: found, its options valid, not made yet (unless it was given as an object)."""

    name: str
    cls: type[Method]
    options: Any
    made: Method | None = None


def choose(methods: Iterable[MethodLike], register: Register | None = None) -> tuple[list[Chosen], list[str]]:
    """Find every method and read its options, importing those named and no other.

    Returns:
        what could be used, and a line for each thing that could not.

    Raises:
        UsageError: `methods` is no list.
    """
    refuse_no_list(methods)
    chosen: list[Chosen] = []
    problems: list[str] = []
    for method in methods:
        try:
            if isinstance(method, Method):
                name = own_name(type(method))
                chosen.append(Chosen(name, check_method(type(method), name), method.options, made=method))
                continue
            wanted, options = method if isinstance(method, tuple) else (method, {})
            if isinstance(wanted, str):
                register = register or Register.load()
                found, defaults = register.resolve(wanted)
                chosen.append(_with_options(found.name, register.load_class(found.name), {**defaults, **options}))
            else:
                name = own_name(wanted)
                chosen.append(_with_options(name, check_method(wanted, name), options))
        except UsageError as error:
            problems += str(error).splitlines()
    return chosen, problems


def refuse_no_list(methods: object) -> None:
    """Raises: UsageError where one method stands for a list of them, or a dict, whose options would be lost."""
    if isinstance(methods, Mapping):
        pairs = ", ".join(f"({name!r}, {options!r})" for name, options in methods.items())
        raise UsageError(f"methods must be a list, got a dict. Write [{pairs}].")
    if isinstance(methods, str | type) or not isinstance(methods, Iterable):
        told = methods.__name__ if isinstance(methods, type) else repr(methods)
        raise UsageError(f"methods must be a list, got {told}. Write [{told}].")


def own_name(cls: type) -> str:
    """What a method is called that is given as a class: the class's name in lower letters."""
    return getattr(cls, "__name__", str(cls)).lower()


def _with_options(name: str, cls: type[Method], options: Mapping[str, Any]) -> Chosen:
    try:
        return Chosen(name, cls, cls.Options(**options))
    except ValidationError as error:
        lines = explain(error, cls.Options, name, "option", f"--with {name}:{{path}}={{value}}")
        raise UsageError("\n".join(lines)) from None


def check(
    chosen: Sequence[Chosen],
    spec: Spec,
    classifier: nn.Module | None,
    *,
    rows: int | None = None,
    model: str = "",
    fresh: bool = True,
) -> list[str]:
    """A line for each conflict between the methods and each need that the run does not meet.

    Args:
        chosen: the methods in the user's order.
        spec: the facts of the run.
        classifier: the network's last layer; it may live on the meta device.
        rows: rows in a batch, where known.
        model: the network's name, for the message.
        fresh: whether the training is to begin; else what its beginning took may be gone.
    """
    problems = conflicts(chosen)
    for c in chosen:
        if c.cls.linear_classifier and not isinstance(classifier, nn.Linear):
            problems.append(_no_linear(c.name, classifier, model))
        for fact in c.cls.facts:
            if getattr(spec, fact) is None:
                problems.append(f"{c.name}: needs `{fact}`, which is not known. Pass {fact}=… to augury.compose.")
        if spec.sharded and not c.cls.sharded:
            problems.append(
                f"{c.name}: is not made for a network whose weights are spread over processes (FSDP; it declares no "
                f"`sharded`). Leave {c.name} out, or train without FSDP."
            )
        if rows is not None and rows < c.cls.min_rows:
            problems.append(
                f"{c.name}: needs at least {c.cls.min_rows} rows in a batch, got {rows}. Raise the batch size."
            )
        if fresh:
            try:
                c.cls.check(c.options, spec)
            except UsageError as error:
                problems += str(error).splitlines()
    return problems


def conflicts(chosen: Sequence[Chosen]) -> list[str]:
    """A line for each reason why these methods cannot be used together, whatever the run."""
    problems = [
        f"{name} is named {n} times; name it once." for name, n in Counter(c.name for c in chosen).items() if n > 1
    ]
    views = {c.name: c.cls.views for c in chosen if c.cls.views > 1}
    if len(set(views.values())) > 1:
        told = " and ".join(f"{name} needs {n}" for name, n in views.items())
        problems.append(f"{told} views of each image; a composition has one number of views.")
    replacing = [c.name for c in chosen if replaces_criterion(c.cls)]
    if len(replacing) > 1:
        problems.append(f"{' and '.join(replacing)} each replace the criterion; a composition takes one of them.")
    shares = {c.name: dict(wanted) for c in chosen if (wanted := c.cls.pipelines(c.options)) is not None}
    if len({tuple(sorted(s.items())) for s in shares.values()}) > 1:
        told = "; ".join(f"{name} asks for {s}" for name, s in shares.items())
        problems.append(f"the methods ask for different shares of the pipelines: {told}. Make their options agree.")
    mixing: list[str] = []
    inside = ""
    for c in chosen:
        if c.cls.unmixed and mixing:
            problems.append(
                f"{c.name} must see images before {mixing[0]} mixes them. Name {c.name} before {mixing[0]}."
            )
        if inside and (c.cls.mixes or c.cls.mixes_hidden):
            both = c.cls.mixes_hidden
            way_out = f"Leave {c.name} or {inside} out." if both else f"Name {c.name} before {inside}."
            problems.append(f"{inside} mixes inside the network, so no method can mix after it. {way_out}")
        if c.cls.mixes or c.cls.mixes_hidden:
            mixing.append(c.name)
        if c.cls.mixes_hidden:
            inside = c.name
    return problems


def _no_linear(name: str, classifier: nn.Module | None, model: str) -> str:
    if classifier is None:
        return (
            f"{name}: needs the network's classifier, an nn.Linear. Pass classifier=model.fc, say, to augury.compose."
        )
    what = f"`{model}`" if model else "this one"
    end = type(classifier).__name__
    return f"{name} needs a model whose classifier is one nn.Linear; {what} ends in {end}. Choose another model."
