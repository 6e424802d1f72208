"""Options refuse what they say they refuse."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

import augury
from augury_authoring.testing.bench import Bench, CheckFailed

UNKNOWN = "no_such_option"
_NUMBER = r"-?\d+(?:\.\d+)?"


class _Nothing:
    """A value that no option means."""

    def __repr__(self) -> str:
        return "an object of another type"


def options(bench: Bench, rejects: Sequence[Mapping[str, Any]]) -> None:
    """Every declared bound, choice and type is enforced, unknown options too; each option has a description, and a
    default that is valid where it has one; options do not change; what the test lists in `rejects` is refused.

    Wrong values are put among the options of the test, so that it is they which are refused: not that a required option
    is missing, and not how two options go together."""
    cls, name = bench.cls.Options, bench.name
    if not (isinstance(cls, type) and issubclass(cls, augury.Options)):
        bench.ready()
        return
    made = bench.candidate.options
    given = {field: getattr(made, field) for field in made.model_fields_set}
    faults = [
        *_documented(cls, given),
        *_frozen(made),
        *(fault for field, info in cls.model_fields.items() for fault in _enforced(cls, given, field, info)),
        *_refused(cls, given, {UNKNOWN: 1}, "is no option", "Derive Options from augury.Options; leave `extra` alone."),
    ]
    for wrong in rejects:
        advice = "Bound it with pydantic's Field."
        faults += _refused(cls, given, wrong, "must be refused, as `rejects` says", advice, anywhere=True)
    if faults:
        raise CheckFailed("\n".join(f"{name}: {fault}" for fault in faults))


def _documented(cls: type[augury.Options], given: Mapping[str, Any]) -> Iterator[str]:
    for field, info in cls.model_fields.items():
        if not (info.description or "").strip():
            yield f"option `{field}` has no description. Give it one: Field(..., description=...)."
        # A required one has none: the test gives it.
        if info.is_required():
            continue
        default = getattr(cls.model_construct(), field)
        if (fault := _raised(cls, given, field, default)) is not None:
            yield f"option `{field}`: its own default {default!r} is refused: {fault}."


def _frozen(made: augury.Options) -> Iterator[str]:
    for field in type(made).model_fields:
        try:
            setattr(made, field, getattr(made, field))
        except ValidationError:
            continue
        yield f"option `{field}` can be changed afterwards. Leave `frozen` of augury.Options alone."
        return


def _enforced(cls: type[augury.Options], given: Mapping[str, Any], field: str, info: FieldInfo) -> Iterator[str]:
    advice = "Bound it with pydantic's Field, and keep validators to it."
    for value, why in _violations(info):
        yield from _refused(cls, given, {field: value}, why, advice)


def _violations(info: FieldInfo) -> Iterator[tuple[Any, str]]:
    """Values that the field's annotation, bounds or description exclude, each with the reason."""
    kinds = _kinds(info.annotation)
    yield _Nothing(), "must have a type, and Any is none"
    # True is a whole number to pydantic, and "yes" a truth.
    if kinds <= {int, float} and kinds:
        yield "many", "must be a number"
    if kinds == {int}:
        yield 1.5, "must be a whole number"
    if kinds == {bool}:
        yield "perhaps", "must be true or false"
    if kinds == {"choice"}:
        yield "no such choice", "must be one of its choices"
    if float in kinds and not any(getattr(m, "allow_inf_nan", None) for m in info.metadata):
        for value in (math.nan, math.inf, -math.inf):
            yield value, "must be finite, as augury.Options has it"
    step = 1 if int in kinds else 0.5
    numeric = bool(kinds & {int, float})
    bounded = False
    for bound in info.metadata:
        for kind, value in _beyond(bound, step):
            bounded = True
            yield value, f"must be {kind}"
    if numeric and not bounded:
        yield from _in_words(info.description or "", step)


def _beyond(bound: Any, step: float) -> Iterator[tuple[str, Any]]:
    """What a bound of the field (`Ge`, `Lt` and the like of annotated_types) says, and a value beyond it."""
    for name, sign, beyond in (("ge", ">=", -step), ("gt", ">", 0), ("le", "<=", step), ("lt", "<", 0)):
        if (limit := getattr(bound, name, None)) is not None:
            yield f"{sign} {limit}", limit + beyond
    if unit := getattr(bound, "multiple_of", None):
        yield f"a multiple of {unit}", unit * 1.5 if isinstance(unit, float) else unit + 1
    if count := getattr(bound, "min_length", None):
        yield f"of length {count} at least", []


def _in_words(text: str, step: float) -> Iterator[tuple[float, str]]:
    """Bounds that only the description has: "must be >= 0", "in [0, 1]"."""
    if found := re.search(rf"\bin ([\[(])({_NUMBER}), ?({_NUMBER})([\])])", text):
        opens, low, high, closes = found.groups()
        yield float(low) - (step if opens == "[" else 0), f"must be {found[0]}, as its description says"
        yield float(high) + (step if closes == "]" else 0), f"must be {found[0]}, as its description says"
    if found := re.search(rf"\bmust be (>=|>|<=|<|positive|at least|at most) ?({_NUMBER})?", text):
        sign, limit = found[1], float(found[2] or 0)
        beyond = {">=": -step, "at least": -step, "<=": step, "at most": step}.get(sign, 0)
        yield limit + beyond, f"{found[0].strip()}, as its description says"


def _kinds(annotation: Any) -> set[Any]:
    """The plain types that an annotation names, None aside; "choice" for a Literal, "other" for the rest."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_kinds(part) for part in typing.get_args(annotation) if part is not type(None)))
    if origin is typing.Literal:
        return {"choice"}
    return {annotation} if annotation in (int, float, bool, str) else {"other"}


def _refused(
    cls: type[augury.Options],
    given: Mapping[str, Any],
    wrong: Mapping[str, Any],
    why: str,
    advice: str,
    *,
    anywhere: bool = False,
) -> Iterator[str]:
    """A line where `wrong` among the options `given` is not refused, for its own sake or `anywhere`."""
    told = ", ".join(f"`{key}` = {value!r}" for key, value in wrong.items())
    try:
        cls(**{**given, **wrong})
    except ValidationError as error:
        if anywhere or any(e["loc"][:1] == (key,) for e in error.errors() for key in wrong):
            return
        said = error.errors()[0]["msg"]
        yield f"option {told} is refused only together with others ({said}); it {why}. {advice}"
        return
    except Exception as error:
        yield f"option {told} {why}, and raises {type(error).__name__} instead: {error}. Validators raise ValueError."
        return
    yield f"option {told} is accepted; it {why}. {advice}"


def _raised(cls: type[augury.Options], given: Mapping[str, Any], field: str, value: Any) -> str | None:
    """Why an option refuses a value for its own sake; how it goes with those given is another matter."""
    try:
        cls(**{**given, field: value})
    except ValidationError as error:
        return next((str(e["msg"]) for e in error.errors() if e["loc"][:1] == (field,)), None)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
