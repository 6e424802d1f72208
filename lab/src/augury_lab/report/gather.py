"""Folders as facts: what a report needs of a run, a comparison or an evaluation, and what of it could not be read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from augury.errors import UsageError
from augury.outside import RECORDED, parse_json, read_text
from augury_lab.experiment.suite import SUITE, folder_of
from augury_lab.experiment.table import JSON as COMPARISON
from augury_lab.experiment.table import Comparison
from augury_lab.experiment.table import read as read_comparison
from augury_train.files import refuse_ways_out
from augury_train.training.result import RESULT, Result

CONFIG, DATA, ENVIRONMENT, METRICS = "config.json", "data.json", "environment.json", "metrics.jsonl"
EVALUATION = "evaluation.json"

Kind = Literal["run", "comparison", "evaluation"]


@dataclass(frozen=True)
class RunFacts:
    """A run's folder.

    Attributes:
        folder: where it is now.
        composition: the composition's name where it is part of a comparison, else the folder's.
        config, data, versions, methods, hardware: what its files say; empty where they could not be read.
        rows: of metrics.jsonl, by epoch.
        result: None for a run that is not finished.
    """

    folder: Path
    composition: str
    config: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, Any]
    methods: dict[str, Any]
    hardware: dict[str, Any]
    rows: list[dict[str, Any]]
    result: Result | None

    @property
    def seed(self) -> int | None:
        """The seed of the run, None where its settings could not be read."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    @property
    def epochs(self) -> int:
        """How many epochs are done."""
        return self.rows[-1]["epoch"] if self.rows else 0

    @property
    def epochs_asked(self) -> Any:
        """How many were asked for, None where its settings could not be read."""
        return _section(self.config, "optim").get("epochs")

    @property
    def name(self) -> str:
        """The run as a reader tells it from others."""
        return self.composition if self.seed is None else f"{self.composition}, seed {self.seed}"


@dataclass(frozen=True)
class EvaluationFacts:
    """What `augury evaluate` left in a folder: its numbers, of whatever shape, and its pictures."""

    folder: Path
    content: dict[str, Any]
    pictures: list[Path]

    @property
    def runs(self) -> list[dict[str, Any]]:
        """What it says of each run."""
        said = self.content.get("runs")
        return [run for run in said if isinstance(run, dict)] if isinstance(said, list) else []


@dataclass(frozen=True)
class Facts:
    """A folder to report on.

    Attributes:
        runs: in the order of `names`, by seed.
        evaluations: its own, and of each composition's first run that has one.
        comparison: None for other folders, and where the table is not there yet.
        names: the compositions in the order of the table, the base first.
        asked: the runs that a comparison wants, as composition and seed; empty where nothing tells.
        problems: what is damaged or missing, a line each.
    """

    folder: Path
    kind: Kind
    runs: list[RunFacts]
    comparison: Comparison | None = None
    names: list[str] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    evaluations: list[EvaluationFacts] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def of(self, name: str) -> list[RunFacts]:
        """The runs of a composition, by seed."""
        return [run for run in self.runs if run.composition == name]


def gather(folder: Path) -> Facts:
    """Read a folder of any of the three kinds.

    Raises:
        UsageError: it is none of them.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}. Name one that `augury run`, `compare` or `evaluate` has made.")
    # What a link leads to, would be shown on a page that may be sent to anybody.
    refuse_ways_out(folder)
    if (folder / CONFIG).exists():
        return _gather_run(folder)
    if any((folder / name).exists() for name in (SUITE, COMPARISON)) or any(_run_folders(folder)):
        return _gather_comparison(folder)
    if (folder / EVALUATION).exists():
        problems: list[str] = []
        return Facts(folder, "evaluation", [], evaluations=list(_evaluations(folder, problems)), problems=problems)
    raise UsageError(
        f"{folder} holds no run ({CONFIG}), no comparison ({COMPARISON}) and no evaluation ({EVALUATION}). "
        "Name a folder that `augury run`, `compare` or `evaluate` has made."
    )


def _gather_run(folder: Path) -> Facts:
    problems: list[str] = []
    run = _read_run(folder, folder.resolve().name, folder, problems)
    evaluations = list(_evaluations(folder / "evaluation", problems))
    return Facts(folder, "run", [run], names=[run.composition], evaluations=evaluations, problems=problems)


def _gather_comparison(folder: Path) -> Facts:
    problems: list[str] = []
    comparison = _comparison(folder, problems)
    compositions, seeds = _asked(folder, problems)
    called = {folder_of(folder, name, 0).parent.name: name for name in compositions}
    runs = [
        _read_run(path, called.get(path.parent.name, path.parent.name), folder, problems)
        for path in _run_folders(folder)
    ]
    names = [row.composition for row in comparison.rows] if comparison else compositions
    names = list(dict.fromkeys([*names, *(run.composition for run in runs)]))
    runs.sort(key=lambda run: (names.index(run.composition), run.seed or 0))
    evaluations = [*_evaluations(folder / "evaluation", problems)]
    for name in names:
        evaluated = (run.folder / "evaluation" for run in runs if run.composition == name)
        first = next((place for place in evaluated if (place / EVALUATION).exists()), None)
        evaluations += _evaluations(first, problems) if first else []
    wanted = [(name, seed) for name in compositions for seed in seeds]
    return Facts(folder, "comparison", runs, comparison, names, wanted, evaluations, problems)


def _comparison(folder: Path, problems: list[str]) -> Comparison | None:
    if not (folder / COMPARISON).exists():
        return None
    try:
        # Its shape is right; a file can hold words in the place of numbers.
        found = TypeAdapter(Comparison).validate_python(asdict(read_comparison(folder)))
        wrong = _wrong(found)
        if wrong is None:
            return found
        problems.append(f"{COMPARISON} {wrong}. The same `augury compare` writes it anew.")
    except UsageError as error:
        problems.append(str(error))
    except ValidationError as error:
        problems.append(f"{COMPARISON} cannot be read: {_first(error)}. The same `augury compare` writes it anew.")
    return None


def _wrong(found: Comparison) -> str | None:
    """What keeps it from being shown."""
    if not found.rows:
        return "has no rows"
    if found.base not in [row.composition for row in found.rows]:
        return f"has no row of its base `{found.base}`"
    odd = next((at for row in found.rows for at in _not_finite(asdict(row), f"{row.composition}.")), None)
    return None if odd is None else f"says of `{odd}` what is no finite number"


def _not_finite(said: Mapping[str, Any], before: str) -> Iterator[str]:
    """The keys of such numbers; a mean may be NaN, of a training that came to nothing."""
    for key, value in said.items():
        if isinstance(value, Mapping):
            yield from _not_finite(value, f"{before}{key}.")
        elif isinstance(value, float) and not math.isfinite(value) and not (key == "mean" and math.isnan(value)):
            yield before + key


def _asked(folder: Path, problems: list[str]) -> tuple[list[str], list[int]]:
    """The compositions, the base first, and the seeds."""
    said = _read_object(folder / SUITE, folder, problems)
    seeds = said.get("seeds")
    seeds = [seed for seed in seeds if isinstance(seed, int)] if isinstance(seeds, list) else []
    return list(_section(said, "compositions")), seeds


def _run_folders(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob(f"*/seed-*/{CONFIG}")):
        # What a user has put beside a seed's run is none of the comparison's.
        if re.fullmatch(r"seed-\d+", path.parent.name):
            yield path.parent


def _read_run(folder: Path, composition: str, root: Path, problems: list[str]) -> RunFacts:
    said = {name: _read_object(folder / name, root, problems) for name in (CONFIG, DATA, ENVIRONMENT)}
    environment = said[ENVIRONMENT]
    return RunFacts(
        folder=folder,
        composition=composition,
        config=said[CONFIG],
        data=said[DATA],
        versions=_section(environment, "versions"),
        methods=_section(environment, "methods"),
        hardware=_section(environment, "hardware"),
        rows=_read_rows(folder / METRICS, root, problems),
        result=_result(folder, root, problems),
    )


def _result(folder: Path, root: Path, problems: list[str]) -> Result | None:
    if not (folder / RESULT).exists():
        return None
    said = _read_object(folder / RESULT, root, problems)
    try:
        return TypeAdapter(Result).validate_python({**said, "folder": str(folder)}) if said else None
    except ValidationError as error:
        problems.append(f"{(folder / RESULT).relative_to(root)} cannot be read: {_first(error)}.")
        return None


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    return f"`{'.'.join(map(str, found['loc']))}`: {found['msg']}"


def _section(said: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = said.get(name)
    return found if isinstance(found, dict) else {}


def _read_object(path: Path, root: Path, problems: list[str]) -> dict[str, Any]:
    shown = path.relative_to(root)
    try:
        found = parse_json(read_text(path, RECORDED))
    except FileNotFoundError:
        problems.append(f"{shown} is missing.")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{shown} cannot be read: {error}.")
        return {}
    if not isinstance(found, dict):
        problems.append(f"{shown} cannot be read: it holds no JSON object.")
        return {}
    return found


def _read_rows(path: Path, root: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows whose epochs are numbers, in order; the last line may be cut short by a kill."""
    try:
        lines = read_text(path, RECORDED).splitlines()
    except FileNotFoundError:
        problems.append(f"{path.relative_to(root)} is missing: no epoch is over yet, or the file is lost.")
        return []
    except (OSError, ValueError) as error:
        problems.append(f"{path.relative_to(root)} cannot be read: {error}.")
        return []
    rows: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            epoch = int(row["epoch"])
            rows[epoch] = {**row, "epoch": epoch}
        except (ValueError, TypeError, KeyError, OverflowError):
            if number < len(lines):
                problems.append(f"{path.relative_to(root)}: line {number} cannot be read and is left out.")
    return [rows[epoch] for epoch in sorted(rows)]


def _evaluations(folder: Path, problems: list[str]) -> Iterator[EvaluationFacts]:
    if folder.is_dir() and (folder / EVALUATION).exists():
        content = _read_object(folder / EVALUATION, folder.parent, problems)
        yield EvaluationFacts(folder, content, sorted(folder.rglob("*.png")))
