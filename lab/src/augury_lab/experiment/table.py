"""A comparison's table: what every composition came to over the seeds, written and read as JSON, CSV and Markdown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from augury.errors import UsageError
from augury.outside import RECORDED, parse_json, read_text
from augury_lab.csv_rows import csv_row
from augury_lab.experiment.statistics import Difference, Spread, judge, spread
from augury_lab.experiment.wording import columns, cost_columns, explanation, markdown
from augury_train.files import write_text
from augury_train.measures import Measures
from augury_train.training.result import Result, as_result

__all__ = [
    "Comparison",
    "Difference",
    "Row",
    "Spread",
    "columns",
    "cost_columns",
    "explanation",
    "read",
    "summarise",
    "write",
]

JSON, CSV, MARKDOWN = "comparison.json", "comparison.csv", "comparison.md"


@dataclass(frozen=True)
class Row:
    """What a composition came to over its seeds; accuracies and calibration error in per cent.

    Attributes:
        composition: its name.
        seeds: of its runs.
        best_top1, top5, nll, ece: of the epoch that each run chose; `nll` in nats; `top5` None for up to five classes.
        last_top1: of the last epoch.
        difference: of `best_top1` to the base; None for the base itself.
        epochs, seconds, stage_seconds, images_per_second, forward_passes: means over the seeds, as in `Costs`.
        peak_bytes: the largest of any seed; None where it is not known.
    """

    composition: str
    seeds: list[int]
    best_top1: Spread
    last_top1: Spread
    top5: Spread | None
    nll: Spread
    ece: Spread
    difference: Difference | None
    epochs: float
    seconds: float
    stage_seconds: float
    images_per_second: float
    forward_passes: float
    peak_bytes: float | None


@dataclass(frozen=True)
class Comparison:
    """What compositions came to on the same splits and seeds.

    Attributes:
        rows: the base first.
        base: the composition that the others are compared with.
        split: that they were measured on.
        equal: what all compositions had the same of.
        seeds: in the order of the runs.
        images: of the split.
        folder: of the suite.
        runs: by composition, one for each seed.
    """

    rows: list[Row]
    base: str
    split: Literal["test", "val"]
    equal: Literal["epochs", "compute"]
    seeds: list[int]
    images: int
    folder: Path
    runs: dict[str, list[Result]]


def summarise(
    runs: Mapping[str, Sequence[Result]],
    base: str,
    split: Literal["test", "val"],
    equal: Literal["epochs", "compute"],
    seeds: Sequence[int],
    images: int,
    folder: Path,
) -> Comparison:
    """Summarise finished runs.

    Args:
        runs: by composition, one for each seed in the order of `seeds`; the base among them.
        base, split, equal, seeds, images, folder: as in `Comparison`.

    Raises:
        ValueError: a composition has another number of runs than there are seeds, or the base is missing.
    """
    for name, theirs in runs.items():
        if len(theirs) != len(seeds):
            raise ValueError(f"{name} has {len(theirs)} runs for {len(seeds)} seeds")
    if base not in runs:
        raise ValueError(f"the base {base} is not among the compositions {', '.join(runs)}")
    ordered = {base: list(runs[base])} | {name: list(theirs) for name, theirs in runs.items()}
    scores = {name: [run.best[split].top1 for run in theirs] for name, theirs in ordered.items()}
    differences = judge(scores, base, images)
    rows = [_row(name, theirs, split, list(seeds), differences.get(name)) for name, theirs in ordered.items()]
    return Comparison(rows, base, split, equal, list(seeds), images, folder, ordered)


def _row(name: str, runs: Sequence[Result], split: str, seeds: list[int], difference: Difference | None) -> Row:
    best = [run.best[split] for run in runs]
    costs = [run.costs for run in runs]
    top5 = [found.top5 for found in best if found.top5 is not None]
    peaks = [cost.peak_bytes for cost in costs if cost.peak_bytes is not None]
    return Row(
        composition=name,
        seeds=seeds,
        best_top1=spread([found.top1 for found in best]),
        last_top1=spread([run.last[split].top1 for run in runs]),
        top5=spread(top5) if len(top5) == len(runs) else None,
        nll=spread([found.nll for found in best]),
        ece=spread([found.ece for found in best]),
        difference=difference,
        epochs=statistics.fmean(run.epochs for run in runs),
        seconds=statistics.fmean(cost.seconds for cost in costs),
        stage_seconds=statistics.fmean(cost.stage_seconds for cost in costs),
        images_per_second=statistics.fmean(cost.images_per_second for cost in costs),
        forward_passes=statistics.fmean(cost.forward_passes for cost in costs),
        peak_bytes=float(max(peaks)) if len(peaks) == len(runs) else None,
    )


def write(comparison: Comparison) -> None:
    """Write `comparison.json`, `.csv` and `.md` into the suite's folder; each is whole or as it was before.

    What is not finite is null in the JSON and empty in the CSV.
    """
    plain = asdict(replace(comparison, folder=Path()))
    del plain["folder"]
    write_text(comparison.folder / JSON, json.dumps(_finite(plain), indent=2, allow_nan=False) + "\n")
    flat = [_flat(row) for row in comparison.rows]
    table = [list(flat[0]), *(list(row.values()) for row in flat)]
    write_text(comparison.folder / CSV, "".join(map(csv_row, table)))
    write_text(comparison.folder / MARKDOWN, markdown(comparison))


def read(folder: Path) -> Comparison:
    """What `write` wrote; the runs' folders are those inside `folder`, where it is now.

    Raises:
        UsageError: there is no comparison in it, or a damaged one.
    """
    path = folder / JSON
    try:
        said = parse_json(read_text(path, RECORDED))
        runs = {name: [_run(one, folder) for one in theirs] for name, theirs in said["runs"].items()}
        return Comparison(**{**said, "rows": [_read_row(row) for row in said["rows"]], "runs": runs, "folder": folder})
    except FileNotFoundError:
        raise UsageError(
            f"{folder}: holds no finished comparison ({JSON} is missing). Go on with the `augury compare` that made it."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: cannot be read: {type(error).__name__}: {error}. The same `augury compare` writes it anew; "
            "finished runs are not repeated."
        ) from None


def _flat(row: Row) -> dict[str, Any]:
    cells: dict[str, Any] = {"composition": row.composition, "seeds": len(row.seeds)}
    for name, found in {
        "best_top1_percent": row.best_top1,
        "last_top1_percent": row.last_top1,
        "top5_percent": row.top5,
        "nll_nats": row.nll,
        "ece_percent": row.ece,
    }.items():
        cells |= {f"{name}_mean": found.mean if found else None, f"{name}_std": found.std if found else None}
    difference = row.difference
    for key, name in {
        "mean": "difference_points_mean",
        "std": "difference_points_std",
        "low": "difference_points_low95",
        "high": "difference_points_high95",
        "p": "p",
        "p_holm": "p_holm",
        "needed": "seeds_needed",
        "verdict": "verdict",
    }.items():
        cells[name] = getattr(difference, key) if difference else None
    cells |= {"epochs": row.epochs, "seconds": row.seconds, "stage_seconds": row.stage_seconds}
    cells |= {"images_per_second": row.images_per_second, "forward_passes": row.forward_passes}
    return _finite({**cells, "peak_memory_bytes": row.peak_bytes})


def _finite(value: Any) -> Any:
    """The same with None where a number is not finite, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_row(said: dict[str, Any]) -> Row:
    spreads = {key: _read_spread(said[key]) for key in ("best_top1", "last_top1", "nll", "ece")}
    top5 = None if said["top5"] is None else _read_spread(said["top5"])
    found = said["difference"]
    return Row(
        **{
            **said,
            **spreads,
            "top5": top5,
            "difference": None if found is None else Difference(**{**found, "mean": _number(found["mean"])}),
        }
    )


def _read_spread(said: dict[str, Any]) -> Spread:
    return Spread(**{**said, "mean": _number(said["mean"])})


def _number(said: float | None) -> float:
    return math.nan if said is None else said


def _run(said: dict[str, Any], folder: Path) -> Result:
    run = as_result(said)
    best, last = (
        {split: _read_measures(found) for split, found in measured.items()} for measured in (run.best, run.last)
    )
    return replace(run, folder=str(folder.joinpath(*Path(run.folder).parts[-2:])), best=best, last=last)


def _read_measures(said: Measures) -> Measures:
    return replace(said, top1=_number(said.top1), nll=_number(said.nll), ece=_number(said.ece))
