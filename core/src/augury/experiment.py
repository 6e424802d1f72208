"""Comparisons: compositions x seeds on the same splits and, for each seed, the same initial weights and draws."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from augury.config import MethodConfig, RunConfig
from augury.data.view import DataSet
from augury.errors import UsageError, refuse_all
from augury.pictures import curves_picture
from augury.registry import Register
from augury.training.plan import lasting, make_plan, refuse_inside_data
from augury.training.recorder import METRICS, read_rows
from augury.training.result import Result
from augury.training.trainer import CONFIG, resume, train
from augury.training.watch import Interrupted, Reporter

BASELINE = "baseline"


@dataclass(frozen=True)
class Row:
    """One composition's result; accuracies in percent, means over the seeds.

    Attributes:
        composition: its name.
        seeds: how many runs.
        top1: mean test accuracy of the epoch that was best on validation (validation accuracy where there is no test
        split).
        std: its standard deviation over seeds, None for a single one.
        difference: mean of the seed-by-seed differences to the baseline.
        seconds: mean time of a run, pre-train stage and evaluation included.
        images_per_second: mean training throughput, in images (not views).
    """

    composition: str
    seeds: int
    top1: float
    std: float | None
    difference: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Comparison:
    """The rows in the order asked for, baseline first, and what was measured: "test" or "val"."""

    rows: list[Row]
    split: str
    folder: Path


def compare(
    config: RunConfig,
    compositions: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]],
    *,
    seeds: int,
    folder: Path,
    register: Register | None = None,
    reporter: Reporter | None = None,
) -> Comparison:
    """Train every composition with every seed, the baseline first.

    Runs that are finished in `folder` are not repeated, interrupted ones go on; a run with other settings there is
    refused.

    Args:
        config: settings of all runs; its seed is the first one, its methods are left out.
        compositions: (name, options) pairs by the composition's name.
        seeds: how many, counted up from `config.seed`.
        folder: gets `<composition>/seed-<n>/`, `comparison.json`, `comparison.csv`, `curves.png`, and as `batch.png`
            what the last composition made of its first batch.

    Raises:
        UsageError: all that is wrong with any composition, before the first is trained.
    """
    suite = {BASELINE: [], **compositions}
    problems: list[str] = []
    data = None
    for methods in suite.values():
        try:
            data = make_plan(_config(config, methods, config.seed), register, data).data
        except UsageError as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    refuse_all(problems)
    config = lasting(config)
    refuse_inside_data(folder, config)
    refuse_all([line for name, methods in suite.items() for line in _clashes(config, name, methods, seeds, folder)])
    results: dict[str, list[Result]] = {name: [] for name in suite}
    # Seed by seed, so that what stands after an interruption compares compositions.
    runs = [(name, seed) for seed in range(config.seed, config.seed + seeds) for name in suite]
    for number, (name, seed) in enumerate(runs, 1):
        watcher = _Named(reporter, f"{number}/{len(runs)} {name}, seed {seed}") if reporter else None
        wanted = _config(config, suite[name], seed)
        try:
            ours = _run_folder(folder, name, seed)
            others = [path for other in suite if (path := _run_folder(folder, other, seed)) != ours]
            results[name].append(_finish(wanted, ours, register, watcher, data, others))
        except Interrupted:
            raise Interrupted("interrupted; what was done is kept. Go on with the same command.") from None
    comparison = _summarise(results, folder)
    _write(comparison, results)
    return comparison


def _finish(
    config: RunConfig,
    folder: Path,
    register: Register | None,
    reporter: Reporter | None,
    data: DataSet | None,
    others: Sequence[Path],
) -> Result:
    if (folder / CONFIG).exists():
        return resume(folder, register=register, reporter=reporter, data=data, others=others)
    return train(config, folder, register=register, reporter=reporter, data=data, others=others)


class _Named:
    """Tells a reporter which run of the comparison its news are about."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self._reporter, self._name = reporter, name
        self.note, self.read, self.step = reporter.note, reporter.read, reporter.step
        self.epoch, self.stop = reporter.epoch, reporter.stop

    def start(self, what: str, total_steps: int, done: int) -> None:
        label = self._name if what == "training" else f"{self._name} ({what})"
        self._reporter.start(label, total_steps, done)


def _run_folder(folder: Path, name: str, seed: int) -> Path:
    # A composition's name may hold anything that its options hold.
    return folder / re.sub(r"[^A-Za-z0-9+=,._-]", "_", name).lstrip(".") / f"seed-{seed}"


def _config(config: RunConfig, methods: Sequence[tuple[str, Mapping[str, Any]]], seed: int) -> RunConfig:
    chosen = [MethodConfig(name=name, options=dict(options)) for name, options in methods]
    return config.model_copy(update={"methods": chosen, "seed": seed})


def _clashes(config: RunConfig, name: str, methods: Sequence[Any], seeds: int, folder: Path) -> list[str]:
    problems = []
    for seed in range(config.seed, config.seed + seeds):
        path = _run_folder(folder, name, seed) / CONFIG
        if (
            path.exists()
            and json.loads(path.read_text(encoding="utf-8")) != _config(config, methods, seed).model_dump()
        ):
            problems.append(f"{path.parent} holds a run with other settings. Choose another --output.")
    return problems


def _summarise(results: Mapping[str, Sequence[Result]], folder: Path) -> Comparison:
    split = "val" if any(r.best_test_top1 is None for runs in results.values() for r in runs) else "test"
    scores = {name: [r.score for r in runs] for name, runs in results.items()}
    rows = [
        Row(
            composition=name,
            seeds=len(runs),
            top1=statistics.fmean(scores[name]),
            std=statistics.stdev(scores[name]) if len(runs) > 1 else None,
            difference=statistics.fmean(a - b for a, b in zip(scores[name], scores[BASELINE], strict=True)),
            seconds=statistics.fmean(r.seconds for r in runs),
            images_per_second=statistics.fmean(r.images_per_second for r in runs),
        )
        for name, runs in results.items()
    ]
    return Comparison(rows, split, folder)


def _write(comparison: Comparison, results: Mapping[str, Sequence[Result]]) -> None:
    folder = comparison.folder
    rows = [asdict(row) for row in comparison.rows]
    content = {
        "split": comparison.split,
        "rows": rows,
        "runs": {n: [asdict(r) for r in runs] for n, runs in results.items()},
    }
    (folder / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with (folder / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    *_, last = results.values()
    key = f"{last[0].chosen_on}_ema_top1" if last[0].weights == "ema" else f"{last[0].chosen_on}_top1"
    curves = {
        name: [[row[key] for row in read_rows(Path(r.folder) / METRICS)] for r in runs]
        for name, runs in results.items()
    }
    chosen_on = "validation" if last[0].chosen_on == "val" else "test"
    curves_picture(curves, f"{chosen_on} top-1 / %").savefig(folder / "curves.png", dpi=120)
    drawn = Path(last[0].folder) / "figures" / "batch.png"
    # A training of which every batch so far was left empty has drawn none.
    if drawn.exists():
        shutil.copyfile(drawn, folder / "batch.png")
