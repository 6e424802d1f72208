"""The section of an evaluation: the numbers that it is asked for, side by side, and its pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from augury.report.gather import EvaluationFacts
from augury.report.images import picture
from augury.report.parts import Section, Table
from augury.report.words import NONE, is_number, number

LONG = 200_000
"""Characters of an evaluation's numbers that a page does not hold any more."""
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
    "corruptions.clean": "top-1 on the images to be corrupted / %",
    "corruptions.mean": "top-1 on corrupted images / %",
}
"""What is shown of the numbers, in this order."""
TITLES = {
    "worst": "Images of the highest loss",
    "confusion": "Confusion matrix",
    "landscape": "Loss around the weights",
    "outliers": "Other data",
}


def evaluation(place: int, found: EvaluationFacts, root: Path, problems: list[str]) -> Section:
    """The `place`-th evaluation of the page; pictures that cannot be shown are added to `problems`."""
    of = found.folder.parent.relative_to(root).as_posix() if found.folder != root else "."
    everything = json.dumps(found.content, indent=2, ensure_ascii=False)
    numbers = [dict(_numbers(run)) for run in found.runs]
    keys = [key for key in LABELS if any(key in one for one in numbers)]
    # Of an evaluation of another shape, all that is a number.
    keys = keys or list(dict.fromkeys(key for one in numbers for key in one))
    rows = [[LABELS.get(key, key), *(_figure(one.get(key)) for one in numbers)] for key in keys]
    names = [str(run.get("name", NONE)) for run in found.runs]
    notes, shown = found.content.get("notes"), (picture(path, _title(path), problems) for path in _ordered(found))
    return Section(
        f"evaluation-{place}",
        "Evaluation" if of == "." else f"Evaluation of {of}",
        text=" ".join(map(str, notes)) if isinstance(notes, list) else "",
        tables=[Table(["measure", *names], rows)] if rows else [],
        pictures=[("", [one for one in shown if one is not None])],
        folded=[("All numbers", everything if len(everything) < LONG else "Too long for a page: see evaluation.json.")],
    )


def _numbers(said: dict[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested objects, not in lists, by their full names."""
    for key, value in said.items():
        if is_number(value):
            yield f"{before}{key}", value
        elif isinstance(value, dict):
            yield from _numbers(value, f"{before}{key}.")


def _figure(value: Any) -> str:
    return number(value, 0 if isinstance(value, int) else 3)


def _ordered(found: EvaluationFacts) -> list[Path]:
    """Its pictures, in the order in which it names its files."""
    files = found.content.get("files")
    names = files if isinstance(files, list) else []
    return sorted(
        found.pictures, key=lambda path: (path.name not in names, path.name in names and names.index(path.name))
    )


def _title(path: Path) -> str:
    start, _, rest = path.stem.partition("-")
    title = TITLES.get(start, start.replace("_", " ").capitalize())
    return f"{title}: {rest}" if rest else title
