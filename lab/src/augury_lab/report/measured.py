"""The numbers of a run in an evaluation.json, as the rows of a table; what is absent, or damaged, makes no row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from augury_lab.report.words import is_number, number

LABELS = {
    "images": "images",
    "measures.top1": "top-1 / %",
    "measures.top5": "top-5 / %",
    "classes.balanced": "balanced accuracy / %",
    "classes.macro_f1": "F1, mean of the classes / %",
    "measures.nll": "NLL / nats",
    "measures.ece": "ECE / %",
    "calibration.temperature": "temperature",
    "calibration.after.nll": "NLL at that temperature / nats",
    "calibration.after.ece": "ECE at that temperature / %",
}
"""What is shown of the single numbers, in this order."""


def measured(run: dict[str, Any]) -> dict[str, str]:
    """The rows of a run.

    Args:
        run: what the file says of it. Of one of another shape all that is a number is shown, by its full name.

    Returns:
        title -> number.
    """
    single = dict(_numbers(run))
    found = {title: _figure(single[key]) for key, title in LABELS.items() if key in single}
    for part in (_attacks, _corruptions, _shifts, _outliers):
        found |= {title: _figure(value) for title, value in part(run) if is_number(value)}
    landscape = _object(run.get("landscape"))
    if "rise" in landscape:
        # The file has no other word for what is not finite.
        rise = landscape["rise"]
        found["rise of the loss nearby / nats"] = "not finite" if rise is None else _figure(rise)
    return found or {key: _figure(value) for key, value in single.items()}


def _numbers(said: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested objects, not in lists, by their full names."""
    for key, value in said.items():
        if is_number(value):
            yield f"{before}{key}", value
        elif isinstance(value, dict):
            yield from _numbers(value, f"{before}{key}.")


def _attacks(run: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for attack in map(_object, _list(run.get("attacks"))):
        name = str(attack.get("attack")).upper()
        for epsilon, top1 in zip(_list(attack.get("epsilons")), _list(attack.get("top1")), strict=False):
            if is_number(epsilon):
                yield f"{name} {f'{epsilon:g}/255' if epsilon else 'not attacked'}, top-1 / %", top1


def _corruptions(run: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    said = _object(run.get("corruptions"))
    yield "not corrupted, top-1 / %", said.get("clean")
    yield "corrupted, mean top-1 / %", said.get("mean")
    for group, top1 in _object(said.get("groups")).items():
        yield f"corrupted by {group}, mean top-1 / %", top1


def _shifts(run: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    shifts = {name: _object(said) for name, said in _object(run.get("shifts")).items()}
    # The same images under each.
    yield "not shifted, top-1 / %", next((said.get("clean") for said in shifts.values()), None)
    for name, said in shifts.items():
        top1 = [value for value in _list(said.get("top1")) if is_number(value)]
        if top1:
            yield f"{name.replace('_', ' ')}, mean top-1 of {len(top1)} strengths / %", sum(top1) / len(top1)


def _outliers(run: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for other in map(_object, _list(run.get("outliers"))):
        yield f"{other.get('name')} as outliers, AUROC / %", other.get("auroc")
        yield f"{other.get('name')} taken for own / %", other.get("fpr95")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _figure(value: Any) -> str:
    return number(value, 0 if isinstance(value, int) else 3)
