"""Networks chosen by what they are: their size, their classifier, and what methods need of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from augury.errors import UsageError, shown
from augury_train.catalogue.facts import Backbone, Size

_COUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)([kMB]?)")
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Selection:
    """What filters leave.

    Attributes:
        backbones: those that pass all of them.
        unknown: names of those that were left out because their size is not known.
    """

    backbones: list[Backbone]
    unknown: tuple[str, ...]


def select(
    found: Sequence[Backbone],
    *,
    max_params: int | None = None,
    linear_head: bool = False,
    methods: Mapping[str, bool] | None = None,
) -> Selection:
    """Keep the networks that pass every filter.

    Args:
        found: the networks to choose from.
        max_params: the largest number of parameters.
        linear_head: keep those alone whose classifier is one `nn.Linear`.
        methods: by name those that are all to train it, and whether each needs such a classifier. None of them trains a
            network with several classifiers, or without any.

    Raises:
        UsageError: none is left; it says by which filter.
    """
    filters = list(_filters(max_params, linear_head, methods or {}))
    unknown = tuple(backbone.name for backbone in found if backbone.size is None) if filters else ()
    left = [backbone for backbone in found if not filters or backbone.size is not None]
    if not left:
        raise UsageError(f"nothing is left: {unknown_sizes(unknown)}")
    for option, test in filters:
        passed = [backbone for backbone in left if backbone.size is not None and test(backbone.size)]
        if not passed:
            raise UsageError(f"{option} leaves none of {_models(len(left))}. {_way_out(option, left)}")
        left = passed
    return Selection(left, unknown)


def unknown_sizes(names: Sequence[str]) -> str:
    """A line about the networks that filters had to leave out."""
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return (
        f"the size of {_models(len(names))} that match is not known, and they were left out ({some}). "
        "A pattern that matches fewer has them measured."
    )


def parameters_in(text: str) -> int:
    """A number of parameters as people write it: 30M, 1.5M, 270k, 26000000.

    Raises:
        UsageError: it is none.
    """
    told = _COUNT.fullmatch(text.strip())
    count = 0 if told is None else round(float(told[1]) * _UNITS[told[2]])
    if not count:
        raise UsageError(
            "--max-params must be a number of parameters above 0, with k, M or B behind it or without, "
            f"got {shown(text)}. Write 30M, 1.5M, 270k or 26000000."
        )
    return count


def _filters(
    max_params: int | None, linear_head: bool, methods: Mapping[str, bool]
) -> Iterator[tuple[str, Callable[[Size], bool]]]:
    """What each option that was given asks of a network."""
    if max_params is not None:
        yield f"--max-params {max_params:,}", lambda size: size.parameters <= max_params
    if linear_head:
        yield "--linear-head", lambda size: size.linear
    if methods:
        linear = any(methods.values())
        yield f"--for {','.join(methods)}", lambda size: size.linear if linear else size.trainable


def _way_out(option: str, left: Sequence[Backbone]) -> str:
    sizes = {backbone.name: backbone.size for backbone in left if backbone.size is not None}
    if not option.startswith("--max-params"):
        kinds = sorted({_heads(size.classifiers) for size in sizes.values()})
        return f"They have {', '.join(kinds)}. Widen the pattern, or leave the filter out."
    count, name = min((size.parameters, name) for name, size in sizes.items())
    return f"The smallest is {name}, {count:,} parameters."


def _heads(classifiers: Sequence[str]) -> str:
    if len(classifiers) > 1:
        return f"{len(classifiers)} classifiers"
    return f"a classifier that is a {classifiers[0]}" if classifiers else "no classifier"


def _models(count: int) -> str:
    return "1 model" if count == 1 else f"{count:,} models"
