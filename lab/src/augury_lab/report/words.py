"""A comparison's answer in words, and numbers as texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from augury_lab.experiment import wording
from augury_lab.experiment.suite import BASELINE
from augury_lab.experiment.table import Comparison, Difference, Row

NONE = "\N{EN DASH}"
SPLITS = {"val": "validation", "test": "test", "train": "training"}

Kind = Literal["better", "worse", "open", "unjudged"]
_SAID: dict[Kind, str] = {
    "better": "{is_} better than {base}",
    "worse": "{is_} worse than {base}",
    "open": "{is_} not distinguishable from {base}",
    "unjudged": "cannot be judged",
}
MANY = 4
"""What is still named one by one in a sentence."""


def is_number(value: Any) -> bool:
    """Whether it can be shown as a number: files may say anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    """With so many digits behind the point; a dash for what is no number."""
    return f"{value:{'+' if sign else ''},.{digits}f}" if is_number(value) else NONE


def duration(seconds: Any) -> str:
    """Seconds, minutes or hours, whichever is read best."""
    return wording.duration(seconds) if is_number(seconds) else NONE


def memory(value: Any) -> str:
    """Bytes in MiB or GiB."""
    return wording.memory(value) if is_number(value) else NONE


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def seeds_in_words(seeds: Sequence[int]) -> str:
    """5 seeds, 0 to 4."""
    if len(seeds) == 1:
        return f"1 seed, {seeds[0]}"
    in_a_row = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return f"{len(seeds)} seeds, " + (f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds)))


def kind_of(difference: Difference | None) -> Kind:
    """What the verdict comes to."""
    if difference is None or difference.p_holm is None:
        return "unjudged"
    return "better" if difference.verdict == "better" else "worse" if difference.verdict == "worse" else "open"


def answer(comparison: Comparison) -> list[str]:
    """The question's answer: what is better than the base, what is worse, what cannot be told.

    Returns:
        One sentence that names all; of many compositions a sentence that counts them, and one that names the better and
        one that names the worse.
    """
    others = [row for row in comparison.rows if row.difference is not None]
    if not others:
        return [f"There is nothing to compare {comparison.base} with."]
    base = "the baseline" if comparison.base == BASELINE else comparison.base
    if len(comparison.seeds) == 1:
        return [f"One seed cannot tell a difference to {base} from luck."]
    by_kind: dict[Kind, list[str]] = {
        kind: [row.composition for row in others if kind_of(row.difference) == kind] for kind in _SAID
    }
    found = {kind: names for kind, names in by_kind.items() if names}
    many = len(others) > MANY
    parts: list[str] = []
    for kind, names in found.items():
        who = str(len(names)) if many else listed(names)
        is_ = "is" if len(names) == 1 else "are"
        parts.append(f"{who} {_SAID[kind].format(is_=is_, base='it' if parts else base)}")
    if not many:
        return ["; ".join(parts) + "."]
    if list(found) == ["open"]:
        return [f"None of the {len(others)} compositions is distinguishable from {base}."]
    named = [f"{kind.capitalize()}: {listed(found[kind])}." for kind in found if kind in ("better", "worse")]
    return [f"Of {len(others)} compositions {listed(parts)}.", *named]


def highest(comparison: Comparison) -> list[str]:
    """Who has the highest mean accuracy, with its difference to the base; nothing where no accuracy is a number."""
    found: Row | None = max(
        (r for r in comparison.rows if is_number(r.best_top1.mean)), key=lambda r: r.best_top1.mean, default=None
    )
    if found is None:
        return []
    score = f"{number(found.best_top1.mean)} %" if found.best_top1.std is None else _spread(found)
    text = f"Highest mean {SPLITS[comparison.split]} top-1: {found.composition}, {score}"
    difference = found.difference
    if difference is None:
        return [f"{text}, the base itself."]
    text += f", {number(difference.mean, sign=True)} points against {comparison.base}"
    if is_number(difference.low) and is_number(difference.high):
        ends = f"{number(difference.low, sign=True)} to {number(difference.high, sign=True)}"
        text += f" (95 % interval {ends})"
    return [text + "."]


def _spread(row: Row) -> str:
    return f"{number(row.best_top1.mean)} ± {number(row.best_top1.std)} %"
