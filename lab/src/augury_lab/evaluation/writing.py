"""The files of an evaluation: numbers, tables and pictures."""

from __future__ import annotations

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from augury.errors import UsageError
from augury.outside import RECORDED, given_path, parse_json, read_text
from augury_lab.csv_rows import ERRORS, csv_row
from augury_lab.evaluation.drawing import Confidences, drawn
from augury_lab.evaluation.results import Evaluation
from augury_lab.evaluation.subject import Subject
from augury_train.files import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATION = "evaluation.json"
NO_GLYPH = r"Glyph .* missing from font|Matplotlib currently does not support .* natively"
"""What matplotlib says of letters that its font lacks, and draws as boxes."""


def choose_folder(runs: Sequence[Path], output: Path | str | None) -> Path:
    """Where the files go: `output`, else `evaluation` within the only run's folder, or here.

    Raises:
        UsageError: it is no path.
    """
    if output is None:
        return runs[0] / "evaluation" if len(runs) == 1 else Path("evaluation")
    return given_path(output, "--output")


def refuse_taken(folder: Path) -> None:
    """Raises: UsageError where the folder holds something that is no evaluation, or cannot be one."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Choose another --output.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / EVALUATION).is_file():
        raise UsageError(f"{folder} holds other files than an evaluation's. Choose another --output.")


def try_folder(folder: Path) -> None:
    """Make the folder.

    Raises:
        UsageError: it cannot be made, or written to.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")


def write(evaluation: Evaluation, subjects: Sequence[Subject], confidences: Sequence[Confidences]) -> Evaluation:
    """Write all files anew, in place of those of an earlier evaluation.

    Args:
        evaluation: what is found, in a folder that is there; its `files` are still to come.
        subjects: its runs.
        confidences: of each run, for the picture of outliers.

    Returns:
        the evaluation, with the files' names.

    Raises:
        UsageError: the folder cannot be written to.
    """
    folder = Path(evaluation.folder)
    with _writing(folder):
        _remove_earlier(folder)
        done = _save(replace(evaluation, files=[EVALUATION, *_tables(evaluation, folder)]))
        # Once without the pictures: whatever becomes of them, what took long to measure is kept.
        pictures: list[str] = []
        try:
            for name, figure in drawn(evaluation, subjects, confidences):
                save_picture(figure, folder / name)
                pictures.append(name)
        finally:
            done = _save(replace(done, files=[*done.files, *pictures]))
    return done


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"{folder}: cannot be written ({why}). Choose another --output.") from None


def _save(evaluation: Evaluation) -> Evaluation:
    text = json.dumps(evaluation.to_json(), indent=2, allow_nan=False)
    write_text(Path(evaluation.folder) / EVALUATION, f"{text}\n")
    return evaluation


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; it is whole or absent."""
    with replacing(path) as partial, warnings.catch_warnings():
        # Names in any script are right in the tables.
        warnings.filterwarnings("ignore", NO_GLYPH, UserWarning)
        figure.savefig(partial, format="png", dpi=110)


def _remove_earlier(folder: Path) -> None:
    """An earlier evaluation's files go, so that none is taken for one of this."""
    try:
        names = parse_json(read_text(folder / EVALUATION, RECORDED))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in names if isinstance(names, list) else []:
        # Names alone: what says otherwise was not written here.
        if isinstance(name, str) and Path(name).name == name and Path(name).suffix in (".csv", ".png"):
            with contextlib.suppress(OSError, ValueError):
                (folder / name).unlink()


def _tables(evaluation: Evaluation, folder: Path) -> Iterator[str]:
    yield _csv(folder / "per_class.csv", _class_rows(evaluation))
    for run in evaluation.runs:
        names = [row.name for row in run.classes.rows]
        counts = [[name, *row] for name, row in zip(names, run.classes.confusion, strict=True)]
        yield _csv(folder / evaluation.file("confusion", run, "csv"), [["true \\ predicted", *names], *counts])
    changed = list(_changed_rows(evaluation))
    if changed:
        titles = ["run", "change", "level", "unit", "images", "top1_percent"]
        yield _csv(folder / "robustness.csv", [titles, *changed])


def _csv(path: Path, rows: Iterable[Sequence[Any]]) -> str:
    write_text(path, "".join(map(csv_row, rows)), ERRORS)
    return path.name


def _class_rows(evaluation: Evaluation) -> Iterator[list[Any]]:
    yield ["run", "class", "images", "predicted", "recall_percent", "precision_percent", "f1_percent"]
    for run in evaluation.runs:
        for row in run.classes.rows:
            shares = [None if value is None else round(value, 4) for value in (row.recall, row.precision, row.f1)]
            yield [run.name, row.name, row.support, row.predicted, *shares]


def _changed_rows(evaluation: Evaluation) -> Iterator[list[Any]]:
    for run in evaluation.runs:
        for attack in run.attacks:
            for epsilon, top1 in zip(attack.epsilons, attack.top1, strict=True):
                yield [run.name, attack.attack, epsilon, "1/255", attack.images, top1]
        if (found := run.corruptions) is not None:
            for name, accuracies in found.top1.items():
                for severity, top1 in enumerate([found.clean, *accuracies]):
                    yield [run.name, name, severity, "severity", found.images, top1]
        for name, shift in run.shifts.items():
            yield [run.name, name, shift.unchanged, shift.axis, shift.images, shift.clean]
            for strength, top1 in zip(shift.strengths, shift.top1, strict=True):
                yield [run.name, name, strength, shift.axis, shift.images, top1]
