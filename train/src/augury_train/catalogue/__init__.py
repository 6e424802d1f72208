"""The networks that can be trained: timm's and ours, told without importing torch.

timm knows its models only once it and torch are imported, and how large they are only once they are built. Both take
long, so a table is shipped that tells it of one version of timm. What another version has beside that is asked once and
kept in the platform's cache folder.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from augury import __version__
from augury.errors import UsageError
from augury_train.catalogue import asked, table
from augury_train.catalogue.facts import Backbone as Backbone
from augury_train.catalogue.facts import Size as Size
from augury_train.catalogue.filters import Selection as Selection
from augury_train.catalogue.filters import parameters_in as parameters_in
from augury_train.catalogue.filters import select as select
from augury_train.catalogue.filters import unknown_sizes as unknown_sizes

MEASURABLE = 30
"""How many networks that the table does not have are built, at most, to answer one question."""


def backbones(pattern: str = "*") -> list[Backbone]:
    """List the networks whose name matches a pattern.

    Args:
        pattern: a glob over names, `resnet*_cifar`; with a dot in it, over `name.tag`, and only those tags are told.

    Returns:
        by name, in timm's order. A size is not known where timm cannot build the network, or where timm is another
        version than the table's, the table does not have the network, and more than `MEASURABLE` such ones match.

    Raises:
        UsageError: nothing matches.
    """
    shipped = table.shipped()
    if shipped.timm == asked.installed():
        return _matching(shipped.models, pattern)
    here = asked.kept() or asked.ask()
    chosen = _matching(here.models, pattern)
    new = [b.name for b in chosen if b.name not in shipped.models and b.name not in here.sizes]
    if new and len(new) <= MEASURABLE:
        here.sizes.update(asked.measure(new))
        asked.keep(here)
    sizes = {**here.sizes, **{backbone.name: backbone.size for backbone in shipped.models.values()}}
    return [replace(backbone, size=sizes.get(backbone.name)) for backbone in chosen]


def absent(names: Iterable[str], *, ask: bool = True) -> dict[str, str]:
    """Tell which of some networks do not exist here, as those of a recipe made for newer versions.

    Args:
        names: of networks; `name.tag` is the network of that name.
        ask: ask timm, which takes seconds, where it is another version than the table's and its answer is not kept.
            Otherwise none is said to be absent then.

    Returns:
        for each of `names` that is absent, a line that says so and what to do.
    """
    known = _known(ask)
    versions = f"timm {asked.installed()} and augury-train {__version__}"
    return {
        name: f"needs the model `{name}`, which {versions} do not have. "
        "Update them, or take another: --model NAME, see `augury backbones`."
        for name in names
        if known is not None and name.partition(".")[0] not in known
    }


def _known(ask: bool) -> Mapping[str, Backbone] | None:
    """The networks by name; None where only timm could tell, and is not asked."""
    shipped = table.shipped()
    if shipped.timm == asked.installed():
        return shipped.models
    here = asked.kept() or (asked.ask() if ask else None)
    return None if here is None else here.models


def _matching(known: Mapping[str, Backbone], pattern: str) -> list[Backbone]:
    chosen = []
    for name, backbone in known.items():
        if "." not in pattern:
            if fnmatchcase(name, pattern):
                chosen.append(backbone)
        elif tags := tuple(tag for tag in backbone.tags if fnmatchcase(f"{name}.{tag}", pattern)):
            chosen.append(replace(backbone, tags=tags))
    if not chosen:
        raise UsageError(_no_match(pattern, known))
    return chosen


def _no_match(pattern: str, known: Mapping[str, Backbone]) -> str:
    before, dot, _ = pattern.partition(".")
    names = list(known)
    if dot and (near := [backbone for name, backbone in known.items() if fnmatchcase(name, before)]):
        tags = list(dict.fromkeys(tag for backbone in near for tag in backbone.tags if tag))
        some = ", ".join(tags[:8]) + (f" and {len(tags) - 8} more" if len(tags) > 8 else "")
        return f"no model matches `{pattern}`. Weights of `{before}`: {some or 'none with a name'}."
    bare = before.strip("*?")
    around = sum(bare in name for name in names)
    if bare and around and f"*{bare}*" != pattern:
        return f"no model matches `{pattern}`. `*{bare}*` matches {around}."
    alike = difflib.get_close_matches(bare, names, n=3)
    hint = f"Did you mean {', '.join(f'`{name}`' for name in alike)}?" if alike else "See them all: `augury backbones`."
    return f"no model matches `{pattern}`. {hint}"
