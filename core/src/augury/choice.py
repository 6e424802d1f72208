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
from augury.method import Method, Spec, check_method, declared, replaces_criterion
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

    def declares(self, name: str) -> bool:
        """Tell whether it declares something, by the name of a class attribute, with its options."""
        return declared(self.cls, self.options, name)


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
                given = "classifier=model.fc, an nn.Linear," if fact == "num_features" else f"{fact}=…"
                problems.append(f"{c.name}: needs `{fact}`, which is not known. Pass {given} to augury.compose.")
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
    replacing = [c for c in chosen if replaces_criterion(c.cls)]
    if len(replacing) > 1:
        told = " and ".join(c.name for c in replacing)
        problems.append(f"{told} each replace the criterion; a composition takes one of them.")
    return problems + _pipeline_conflicts(chosen) + _reading_conflicts(chosen, replacing) + _order_conflicts(chosen)


def _pipeline_conflicts(chosen: Sequence[Chosen]) -> list[str]:
    problems = []
    shares = {c.name: dict(wanted) for c in chosen if (wanted := c.cls.pipelines(c.options)) is not None}
    if len({tuple(sorted(s.items())) for s in shares.values()}) > 1:
        told = "; ".join(f"{name} asks for {s}" for name, s in shares.items())
        problems.append(f"the methods ask for different shares of the pipelines: {told}. Make their options agree.")
    views = {c.name: c.cls.view_pipelines for c in chosen if c.cls.view_pipelines}
    # One that asks for fewer views is served by the first of more.
    longest = max(views.values(), key=len, default=())
    if any(asked != longest[: len(asked)] for asked in views.values()):
        told = "; ".join(f"{name} asks for {', '.join(asked)}" for name, asked in views.items())
        problems.append(f"the methods ask for different pipelines of the views: {told}. Leave one of them out.")
    if shares and views:
        whole, parts = next(iter(views)), next(iter(shares))
        problems.append(
            f"{whole} asks for a pipeline for each view, {parts} for shares of the rows; a row is made by one. "
            f"Leave {whole} or {parts} out."
        )
    return problems


def _reading_conflicts(chosen: Sequence[Chosen], replacing: Sequence[Chosen]) -> list[str]:
    """A line for each method that would read what another one leaves out or makes otherwise."""
    problems = []
    mixing = [c.name for c in chosen if c.declares("mixes") or c.declares("mixes_hidden")]
    inside = [c.name for c in chosen if c.declares("mixes_hidden")]
    setting = [c.name for c in chosen if c.declares("sets_class_logits")]
    for c in chosen:
        if c.declares("views_alike") and mixing:
            problems.append(
                f"{c.name} compares the views of an image, and {mixing[0]} mixes each view with other images, so the "
                f"views would not be of one image. Leave {c.name} or {mixing[0]} out."
            )
        if c.declares("reads_images") and inside:
            problems.append(
                f"{c.name} looks at the images that the network saw, and {inside[0]} mixes inside the network, where "
                f"the images stay unmixed. Leave {c.name} or {inside[0]} out."
            )
    for c in replacing[:1]:
        if setting and not c.declares("reads_class_logits"):
            problems.append(
                f"{c.name} replaces the criterion and does not read `class_logits`, which is all that {setting[0]} "
                f"changes: {setting[0]} would do nothing. Leave {c.name} or {setting[0]} out."
            )
    return problems


def _order_conflicts(chosen: Sequence[Chosen]) -> list[str]:
    problems: list[str] = []
    mixing: list[str] = []
    inside = ""
    for c in chosen:
        if c.declares("unmixed") and mixing:
            problems.append(
                f"{c.name} must see images before {mixing[0]} mixes them. Name {c.name} before {mixing[0]}."
            )
        mixes_inside = c.declares("mixes_hidden")
        if inside and (c.declares("mixes") or mixes_inside):
            way_out = f"Leave {c.name} or {inside} out." if mixes_inside else f"Name {c.name} before {inside}."
            problems.append(f"{inside} mixes inside the network, so no method can mix after it. {way_out}")
        if c.declares("mixes") or mixes_inside:
            mixing.append(c.name)
        if mixes_inside:
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
