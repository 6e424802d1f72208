"""A comparison's figures show its numbers, and stay readable with many compositions and long names."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from tests.lab.made_up_suites import TIMES, suite

from augury_lab.experiment import plots
from augury_lab.experiment.plots import cost, curves, draw, forest, spaced

SCORES = {
    "baseline": [90.0, 90.5, 91.0, 90.2, 90.8],
    "isda": [91.5, 91.9, 92.5, 91.8, 92.4],
    "agmax": [90.5, 90.4, 91.5, 90.1, 91.4],
    "dcutmix": [88.5, 88.9, 89.5, 88.8, 89.4],
}
LONG = "dcutmix:k=3,alpha=0.33+isda:lambda_0=0.25,covariance=diagonal,variant=official"


def many() -> dict[str, list[float]]:
    """Twelve compositions with long names, of nearly the same accuracy."""
    draws = np.random.default_rng(1)
    names = ["baseline", *(f"{number}+{LONG}" for number in range(11))]
    return {name: draws.normal(90, 0.1, 3).tolist() for name in names}


def lines(ax: Any, color: str) -> list[Any]:
    """The lines of a colour."""
    return [line for line in ax.get_lines() if line.get_color() == color]


def test_curves_show_the_mean_and_the_range_of_the_seeds(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    figure = curves(found)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(SCORES)
    rows = [
        [json.loads(line)["val_top1"] for line in (Path(run.folder) / "metrics.jsonl").read_text().splitlines()]
        for run in found.runs["isda"]
    ]
    line, band = ax.get_lines()[1], ax.collections[1]
    assert line.get_ydata() == pytest.approx(np.mean(rows, 0))
    ends = band.get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == pytest.approx((np.min(rows), np.max(rows)))
    assert figure.get_supylabel() == "validation top-1 / %"


def test_curves_begin_where_the_runs_are_after_a_quarter(tmp_path: Path) -> None:
    low, high = curves(suite(tmp_path, SCORES, epochs=40)).axes[0].get_ylim()
    # A run climbs one point an epoch, and ends one point above its accuracy on the test images.
    assert low == pytest.approx(88.5 + 1 - 29, abs=2)
    assert high == pytest.approx(93.5, abs=2.2)


def test_curves_of_the_average_end_with_the_first_run_that_stopped(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    for number, run in enumerate(found.runs["isda"]):
        rows = [
            TIMES | {"epoch": epoch, "val_top1": 0.0, "val_ema_top1": 50.0 + number} for epoch in range(1, 5 + number)
        ]
        (Path(run.folder) / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = {**found.runs, "isda": [replace(run, weights="ema") for run in found.runs["isda"]]}
    line = curves(replace(found, runs=runs)).axes[0].get_lines()[1]
    assert line.get_ydata().tolist() == [52.0] * 4


def test_runs_whose_metrics_are_gone_are_left_out_of_the_curves(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    (Path(found.runs["agmax"][1].folder) / "metrics.jsonl").unlink()
    names = [text.get_text() for text in curves(found).axes[0].get_legend().get_texts()]
    assert names == ["baseline", "isda", "dcutmix"]
    for runs in found.runs.values():
        for run in runs:
            (Path(run.folder) / "metrics.jsonl").unlink(missing_ok=True)
    assert curves(found).axes[0].get_lines() == []


def test_many_compositions_have_a_panel_each_with_the_base_behind(tmp_path: Path) -> None:
    figure = curves(suite(tmp_path, many()))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == 11
    assert {len(ax.get_lines()) for ax in shown} == {2}
    base = [ax.get_lines()[0].get_ydata() for ax in shown]
    assert all((values == base[0]).all() for values in base)


def test_the_forest_has_each_interval_each_seed_and_the_verdicts_colours(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    (ax,) = forest(found).axes
    for color, row in ((plots.BETTER, found.rows[1]), (plots.UNCLEAR, found.rows[2]), (plots.WORSE, found.rows[3])):
        seeds, interval, mean = lines(ax, color)
        difference = row.difference
        assert difference is not None
        assert seeds.get_xdata() == pytest.approx(np.subtract(SCORES[row.composition], SCORES["baseline"]))
        assert interval.get_xdata() == pytest.approx([difference.low, difference.high])
        assert list(mean.get_xdata()) == [difference.mean]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["isda", "agmax", "dcutmix"]
    texts = [text.get_text() for text in ax.texts]
    assert texts[0].startswith("+1.52 [+1.42, +1.62]\np ")
    low, high = ax.get_xlim()
    # As far as the farthest seed or interval, and a little farther.
    assert (low, high) == pytest.approx((-1.6 - 0.07 * 3.22, 1.62 + 0.07 * 3.22), abs=0.02)


def test_an_interval_far_wider_than_the_seeds_runs_off_the_axis_with_arrows(tmp_path: Path) -> None:
    scores = {"baseline": [90.0, 91.0], "isda": [90.0, 92.0], "agmax": [91.0, 92.1]}
    found = suite(tmp_path, scores)
    (ax,) = forest(found).axes
    assert ax.get_xlim() == pytest.approx((-3.762, 3.762))
    markers = [line.get_marker() for line in ax.get_lines()]
    assert markers.count("<") == markers.count(">") == 1


def test_the_forest_of_one_seed_has_no_interval(tmp_path: Path) -> None:
    figure = forest(suite(tmp_path, {"baseline": [90.0], "isda": [91.0]}))
    assert [text.get_text() for text in figure.axes[0].texts] == ["+1.00, one seed"]
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["of one seed", "a seed"]


def test_a_composition_that_changes_nothing_is_at_zero(tmp_path: Path) -> None:
    (ax,) = forest(suite(tmp_path, {"baseline": [90.0, 91.0, 90.5], "isda": [90.0, 91.0, 90.5]})).axes
    (mark,) = (line for line in lines(ax, plots.UNCLEAR) if line.get_marker() == "D")
    assert list(mark.get_xdata()) == [0]


def test_names_beside_the_costs_do_not_overlap(tmp_path: Path) -> None:
    found = suite(tmp_path, many())
    figure = cost(found)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    left, right = figure.axes
    # Without their lines.
    boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in right.texts]
    assert len(boxes) == 12
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    width, height = canvas.get_width_height()
    assert all(0 <= box.x0 <= box.x1 <= width and 0 <= box.y0 <= box.y1 <= height for box in boxes)
    assert all(box.x0 >= right.get_window_extent().x1 for box in boxes)


def test_costs_are_at_their_place(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    left, right = cost(found).axes
    for ax, x in ((left, 500_000), (right, 60)):
        marks = [container.lines[0].get_xydata()[0].tolist() for container in ax.containers]
        assert marks == [[x, pytest.approx(row.best_top1.mean)] for row in found.rows]


def test_intervals_are_spaced_in_order_without_overlap() -> None:
    draws = np.random.default_rng(2)
    for count in (1, 2, 5, 12):
        wanted, sizes = draws.uniform(0, 1, count), draws.uniform(0.02, 0.08, count)
        places = np.array(spaced(wanted.tolist(), sizes.tolist()))
        order = np.argsort(wanted)
        gaps = np.diff(places[order]) - (sizes[order][1:] + sizes[order][:-1]) / 2
        assert (gaps > -1e-12).all()
        assert ((places - sizes / 2 > -1e-12) & (places + sizes / 2 < 1 + 1e-12)).all()
    assert spaced([0.2, 0.8], [0.1, 0.1]) == [0.2, 0.8]


def test_all_figures_are_drawn_for_any_suite(tmp_path: Path) -> None:
    draw(suite(tmp_path / "several", SCORES))
    draw(suite(tmp_path / "one", {"baseline": [90.0], "_odd $x_1$ name$": [90.0]}, epochs=1))
    draw(suite(tmp_path / "base", {"baseline": [90.0, 90.0]}))
    for name, files in (("several", 3), ("one", 3), ("base", 2)):
        pictures = sorted((tmp_path / name).glob("*.png"))
        assert len(pictures) == files
        for path in pictures:
            with Image.open(path) as picture:
                # Something is on it.
                assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
        assert not list((tmp_path / name).glob("*.partial"))
