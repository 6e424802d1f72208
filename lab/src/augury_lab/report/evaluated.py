"""The section of an evaluation: the numbers that it is asked for, side by side, and its pictures."""

from __future__ import annotations

import json
from pathlib import Path

from augury_lab.report.gather import EvaluationFacts
from augury_lab.report.images import picture
from augury_lab.report.measured import measured
from augury_lab.report.parts import Section, Table
from augury_lab.report.words import NONE

LONG = 200_000
"""Characters of an evaluation's numbers that a page does not hold any more."""
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
    numbers = [measured(run) for run in found.runs]
    titles = dict.fromkeys(title for one in numbers for title in one)
    rows = [[title, *(one.get(title, NONE) for one in numbers)] for title in titles]
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
