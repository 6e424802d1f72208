"""Charts as plotly's JSON, without colours: the page puts in those of its light or dark scheme.

A trace says in `meta` which colour it takes: `{"colour": "series-3"}` is the style sheet's `--series-3`.
"""

from __future__ import annotations

import html
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from augury_lab.report.gather import RunFacts
from augury_lab.report.words import SPLITS, is_number

COLOURS = 8
"""Of the style sheet, beside that of the base."""
DASHES = ("solid", "dash", "dot", "dashdot")

METRICS = {
    "top1": "top-1 / %",
    "loss": "cross-entropy / nats",
    "ema_top1": "top-1 of the averaged weights / %",
    "ema_loss": "cross-entropy of the averaged weights / nats",
}
LABELS = {
    **{
        f"{s}_{m}": f"{name} {label}"
        for s, name in (("val", "validation"), ("test", "test"))
        for m, label in METRICS.items()
    },
    "train_loss": "training loss, methods' terms included",
    "train_top1": "training top-1 on unmixed rows / %",
    "lr": "learning rate",
    "train_seconds": "seconds of training in an epoch",
    "images_per_second": "images per second in training",
}
UNSHOWN = ("epoch", "step", "train_top1_share")


@dataclass(frozen=True)
class Variant:
    """What one entry of a chart's menu shows: plotly's traces and layout."""

    key: str
    label: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Attributes:
        key: unique in the page.
        title, text: what it shows, and how to read it.
        menu: what its menu chooses, where there is more than one variant.
        height: in pixels.
        legend: whether its series can be shown and hidden by name.
    """

    key: str
    title: str
    text: str
    variants: list[Variant]
    menu: str = ""
    height: int = 400
    legend: bool = True


def run_curves(run: RunFacts) -> Chart | None:
    """A run's learning curves: the accuracies together, the losses together, every other metric by itself."""
    keys = _metrics([run])
    groups = {
        title: [key for key in keys if key.endswith(end) and key.partition("_")[0] in SPLITS]
        for title, end in (("top-1 / %", "_top1"), ("loss / nats", "_loss"))
    }
    grouped = {key for group in groups.values() for key in group}
    groups |= {LABELS.get(key, key): [key] for key in keys if key not in grouped}
    variants = [
        Variant(label, label, [_line(run, key, place) for place, key in enumerate(group)], axes("epoch", label))
        for label, group in groups.items()
        if group
    ]
    text = "One point an epoch."
    return Chart("curves", "Learning curves", text, variants, menu="Metric") if variants else None


def _line(run: RunFacts, key: str, place: int) -> dict[str, Any]:
    points = [(row["epoch"], row[key]) for row in run.rows if is_number(row.get(key))]
    split, _, rest = key.partition("_")
    name = SPLITS.get(split, key) + (", averaged weights" if rest.startswith("ema_") else "")
    return _trace(name, place + 1, [x for x, _ in points], [y for _, y in points])


def suite_curves(names: Sequence[str], runs: Callable[[str], Sequence[RunFacts]]) -> Chart | None:
    """Learning curves of compositions: the mean over seeds, with the range of the seeds as a band.

    Args:
        names: in the order of the table, the base first.
        runs: the runs of a composition.
    """
    by_name = {name: list(runs(name)) for name in names}
    everything = [run for given in by_name.values() for run in given]
    variants = []
    for key in _metrics(everything):
        data = [trace for place, name in enumerate(names) for trace in _band(name, place, by_name[name], key)]
        # Bands below all lines.
        data.sort(key=lambda trace: "band" not in trace["meta"])
        variants.append(Variant(key, LABELS.get(key, key), data, axes("epoch", LABELS.get(key, key))))
    if not variants:
        return None
    first = _chosen(everything)
    variants.sort(key=lambda variant: variant.key != first)
    text = "Lines: means over the seeds, as far as every seed went. Bands: from the lowest to the highest seed."
    return Chart("curves", "Learning curves", text, variants, menu="Metric", height=440)


def _metrics(runs: Sequence[RunFacts]) -> list[str]:
    """The keys with a number in some row, accuracies first."""
    keys = dict.fromkeys(k for run in runs for row in run.rows for k, v in row.items() if is_number(v))
    known = [key for key in LABELS if key in keys]
    return known + [key for key in keys if key not in LABELS and key not in UNSHOWN]


def _chosen(runs: Sequence[RunFacts]) -> str:
    """The metric that chose the best epoch."""
    results = [run.result for run in runs if run.result is not None]
    if not results:
        return "val_top1"
    return f"{results[0].chosen_on}_{'ema_' if results[0].weights == 'ema' else ''}top1"


def _band(name: str, place: int, runs: Sequence[RunFacts], key: str) -> list[dict[str, Any]]:
    by_run = [{row["epoch"]: row[key] for row in run.rows if is_number(row.get(key))} for run in runs]
    by_run = [values for values in by_run if values]
    epochs = sorted(set(by_run[0]).intersection(*by_run[1:])) if by_run else []
    if not epochs:
        return []
    values = [[of[epoch] for of in by_run] for epoch in epochs]
    traces = [_trace(name, place, epochs, [short(statistics.fmean(v)) for v in values])]
    if len(by_run) > 1:
        around = [short(max(v)) for v in values] + [short(min(v)) for v in reversed(values)]
        band = _trace(name, place, [*epochs, *reversed(epochs)], around)
        band |= {"fill": "toself", "line": {"width": 0}, "hoverinfo": "skip"}
        band["meta"]["band"] = True
        del band["hovertemplate"]
        traces.append(band)
    return traces


def _trace(name: str, place: int, x: Sequence[Any], y: Sequence[Any]) -> dict[str, Any]:
    dash = DASHES[(place - 1) // COLOURS % len(DASHES)] if place else "solid"
    return {
        "type": "scatter",
        "mode": "lines" if len(x) > 1 else "markers",
        "name": plain(name),
        "x": list(x),
        "y": list(y),
        "line": {"width": 2, "dash": dash},
        "meta": {"colour": colour(place), "series": name, "dash": dash},
        "hovertemplate": hover("epoch %{x}: %{y:.5~g}"),
    }


def colour(place: int) -> str:
    """The style sheet's colour of a composition at this place of the table; the base has its own."""
    return f"series-{(place - 1) % COLOURS + 1 if place else 0}"


def axes(x: str, y: str) -> dict[str, Any]:
    """The layout that two axes of these titles make."""
    return {"xaxis": {"title": {"text": plain(x)}}, "yaxis": {"title": {"text": plain(y)}}}


def hover(text: str) -> str:
    """What is shown at a point: the name of its series, and a text with plotly's places for the values."""
    return f"%{{fullData.name}}<br>{text}<extra></extra>"


def plain(name: str) -> str:
    """A name in plotly's texts, which are a kind of HTML."""
    return html.escape(name, quote=False)


def short(value: float) -> float:
    """Six digits: what a chart can show."""
    return float(f"{value:.6g}")


def as_json(charts: Sequence[Chart]) -> list[Mapping[str, Any]]:
    """What the page's script needs of the charts."""
    return [
        {
            "key": chart.key,
            "legend": chart.legend,
            "variants": [{"key": v.key, "data": v.data, "layout": v.layout} for v in chart.variants],
        }
        for chart in charts
    ]
