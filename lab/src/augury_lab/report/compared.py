"""Charts of a comparison's table: the differences to the base, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from augury_lab.experiment.table import Comparison, Row
from augury_lab.report.charts import COLOURS, Chart, Variant, axes, colour, hover, plain, short
from augury_lab.report.words import SPLITS, is_number, kind_of

SYMBOLS = ("circle", "square", "diamond", "triangle-up")
ROW = 50
"""Pixels of a composition in the chart of differences."""


def differences(comparison: Comparison) -> Chart | None:
    """Each composition's difference to the base, its 95 % interval, and each seed's difference."""
    rows = [row for row in comparison.rows if row.difference is not None and is_number(row.difference.mean)]
    if not rows:
        return None
    data = [trace for place, row in enumerate(rows) for trace in _difference(comparison, row, -place)]
    layout = axes(f"difference in {SPLITS[comparison.split]} top-1 / points", "")
    layout["yaxis"] = {"visible": False, "range": [0.75 - len(rows), 0.85], "fixedrange": True}
    layout["xaxis"] |= {"zeroline": True, "tickformat": "+"}
    layout["annotations"] = [
        {
            "text": plain(row.composition),
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 0.42 - place,
            "yanchor": "middle",
            "showarrow": False,
        }
        for place, row in enumerate(rows)
    ]
    text = (
        f"Diamonds: mean difference to {comparison.base}, paired by seed; bars: its 95 % interval; points: the seeds. "
        "A bar that crosses 0 leaves open which of the two is better."
    )
    height = ROW * len(rows) + 90
    return Chart("differences", "Differences", text, [Variant("top1", "", data, layout)], height=height, legend=False)


def _difference(comparison: Comparison, row: Row, y: int) -> list[dict[str, Any]]:
    """A composition's points of the seeds, and above them its mean with the interval."""
    found = row.difference
    assert found is not None
    name, seeds, base = row.composition, _by_seed(comparison, row.composition), _by_seed(comparison, comparison.base)
    points = {seed: seeds[seed] - base[seed] for seed in seeds if seed in base}
    paint = {"better": "good", "worse": "bad"}.get(kind_of(found), "open")
    of_seeds = _points(name, paint, list(points.values()), y - 0.17, {"size": 7, "opacity": 0.55})
    of_seeds |= {"customdata": list(points), "hovertemplate": hover("seed %{customdata}: %{x:+.2f}")}
    mean = _points(name, paint, [found.mean], y + 0.08, {"size": 12, "symbol": "diamond"})
    mean["hovertemplate"] = hover("mean %{x:+.2f}")
    if found.low is not None and found.high is not None and is_number(found.low) and is_number(found.high):
        ends = {"array": [short(found.high - found.mean)], "arrayminus": [short(found.mean - found.low)]}
        mean["error_x"] = {"type": "data", "symmetric": False, "thickness": 2, "width": 5, **ends}
        mean["hovertemplate"] = hover(f"mean %{{x:+.2f}}, 95 % interval {found.low:+.2f} to {found.high:+.2f}")
    return [of_seeds, mean]


def _points(name: str, paint: str, x: Sequence[float], y: float, marker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": [short(value) for value in x],
        "y": [y] * len(x),
        "marker": dict(marker),
        "meta": {"colour": paint, "series": name},
    }


def _by_seed(comparison: Comparison, name: str) -> dict[int, float]:
    row = next(row for row in comparison.rows if row.composition == name)
    runs = zip(row.seeds, comparison.runs.get(name, []), strict=False)
    scores = {seed: run.best[comparison.split].top1 for seed, run in runs if comparison.split in run.best}
    return {seed: score for seed, score in scores.items() if is_number(score)}


def cost(comparison: Comparison) -> Chart | None:
    """Accuracy against what it took, one point a composition, the spread over seeds as bars."""
    rows = {place: row for place, row in enumerate(comparison.rows) if is_number(row.best_top1.mean)}
    measures: dict[str, tuple[str, str, Callable[[Row], float | None]]] = {
        "forward_passes": ("forward passes", ".3s", lambda row: row.forward_passes),
        "seconds": ("seconds of a run", ".4~g", lambda row: row.seconds),
        "images_per_second": ("images per second", ",.4~r", lambda row: row.images_per_second),
        "peak_bytes": ("largest memory / MiB", ",.4~r", lambda row: row.peak_bytes and row.peak_bytes / 2**20),
    }
    if comparison.equal == "compute":
        # Of forward passes all have as many: their points would lie in one column.
        measures["forward_passes"] = measures.pop("forward_passes")
    variants = []
    for key, (label, shown, of) in measures.items():
        if rows and all(is_number(of(row)) for row in rows.values()):
            data = [_point(row, place, of(row), shown) for place, row in rows.items()]
            layout = axes(label, f"{SPLITS[comparison.split]} top-1 / %")
            layout["xaxis"] |= {"rangemode": "tozero"}
            variants.append(Variant(key, label, data, layout))
    text = (
        "Means over the seeds, pre-train stages included; bars: standard deviation of the accuracy. Better is higher; "
        "cheaper is to the left, but to the right with images per second."
    )
    return Chart("cost", "Accuracy against cost", text, variants, menu="Cost") if variants else None


def _point(row: Row, place: int, x: Any, shown: str) -> dict[str, Any]:
    symbol = SYMBOLS[(place - 1) // COLOURS % len(SYMBOLS)] if place else "circle"
    point = {
        "type": "scatter",
        "mode": "markers",
        "name": plain(row.composition),
        "x": [short(x)],
        "y": [short(row.best_top1.mean)],
        "marker": {"size": 13, "symbol": symbol},
        "meta": {"colour": colour(place), "series": row.composition, "symbol": symbol},
        "hovertemplate": hover(f"%{{y:.2f}} % at %{{x:{shown}}}"),
    }
    if row.best_top1.std is not None and is_number(row.best_top1.std):
        point["error_y"] = {"type": "data", "array": [short(row.best_top1.std)], "thickness": 1.5, "width": 4}
    return point
