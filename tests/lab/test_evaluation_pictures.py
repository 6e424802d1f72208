"""An evaluation's pictures show its numbers, for few classes and many, one run and several."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from augury_lab.evaluation.pictures import (
    Bins,
    Sweep,
    confusion,
    corruptions,
    landscape,
    outliers,
    reliability,
    sweeps,
    worst,
)
from augury_train.pictures import color


def rendered(figure: Any) -> int:
    """How many colours are on the figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, dpi=60)
    with Image.open(file) as picture:
        return len(picture.convert("RGB").getcolors(1 << 24) or [])


def names(count: int) -> list[str]:
    """Names of classes."""
    return [f"class {number}" for number in range(count)]


def test_a_small_confusion_matrix_has_its_counts_written_in() -> None:
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 0, 39]])
    figure = confusion(counts, ["cat", "dog", "a $ in a name that is far too long"], "runs/one")
    ax = figure.axes[0]
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    assert written == {(0, 0): "8", (0, 1): "2", (2, 0): "1", (2, 2): "39"}
    shares = ax.images[0].get_array()
    assert np.asarray(shares[0]) == pytest.approx([80, 20, 0])
    # A class of which there is no image has no shares.
    assert np.ma.getmaskarray(np.ma.masked_invalid(shares))[1].all()
    assert [t.get_text() for t in ax.get_yticklabels()] == ["cat", "dog", r"a \$ in a name that is…"]
    assert (ax.get_ylabel(), ax.get_xlabel(), ax.get_title()) == ("true", "predicted", "runs/one")
    assert rendered(figure) > 20


def test_a_larger_confusion_matrix_lists_the_pairs_that_are_confused_most() -> None:
    counts = np.diag(np.full(30, 90))
    counts[4, 7], counts[9, 2] = 5, 11
    ax, beside, *_ = confusion(counts, names(30)).axes
    assert not ax.texts
    assert beside.texts[0].get_text().splitlines()[2:] == ["", "class 9 → class 2  11", "class 4 → class 7  5"]
    assert len(ax.get_yticklabels()) == 30


def test_a_single_mistake_among_1000_classes_is_drawn() -> None:
    counts = np.diag(np.full(1000, 50))
    counts[997, 3] = 1
    figure = confusion(counts, names(1000))
    image = figure.axes[0].images[0]
    shown = np.asarray(image.get_array())
    assert shown.shape == (250, 250)
    assert shown[249, 0] == pytest.approx(100 / 51)
    assert (shown > 0).sum() == 251
    assert tuple(image.get_extent()) == (-0.5, 999.5, 999.5, -0.5)
    assert rendered(figure) > 5


def test_the_worst_images_are_shown_as_they_are_with_what_they_are_taken_for() -> None:
    images = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    figure = worst(images, [0] * 10, [1] * 10, [0.984] * 10, ["tabby_cat", "dog"])
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == 10
    assert np.asarray(shown[9].images[0].get_array()) == pytest.approx(images[9, 0].numpy())
    assert shown[0].get_xlabel() == "is tabby cat\ntaken for dog (98\xa0%)"
    coloured = worst(torch.rand(1, 3, 6, 6), [0], [1], [0.5], ["a", "b $x$"])
    assert coloured.axes[0].images[0].get_array().shape == (6, 6, 3)
    assert rendered(coloured) > 5


def test_a_reliability_diagram_has_accuracy_gap_and_counts() -> None:
    nan = float("nan")
    bins = Bins([nan, 0.3, 0.6, 0.9], [nan, 0.5, 0.4, 0.8], [0, 10, 30, 60], 12.3)
    figure = reliability({"as trained": bins, "temperature 1.43": bins})
    above, other, below, _ = figure.axes
    accuracy, gap = above.containers
    assert [bar.get_height() for bar in accuracy] == [0, 0.5, 0.4, 0.8]
    assert [bar.get_x() for bar in accuracy] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert [bar.get_y() + bar.get_height() for bar in gap] == pytest.approx([0, 0.3, 0.6, 0.9])
    assert [bar.get_height() for bar in below.containers[0]] == pytest.approx([0, 10, 30, 60])
    assert above.get_title() == "as trained\nECE 12.30 %"
    assert other.get_title().startswith("temperature 1.43")
    assert rendered(figure) > 20
    many = reliability({str(number): bins for number in range(6)})
    assert sum(ax.get_visible() for ax in many.axes) == 12


def test_sweeps_draw_each_run_in_its_colour_against_what_was_turned_up() -> None:
    runs = {"baseline": [95.0, 40.0, 1.0], "isda": [96.0, 50.0, 2.0]}
    figure = sweeps({"FGSM": Sweep("ε / (1/255)", [0, 2, 8], runs), "PGD": Sweep("ε / (1/255)", [0, 2, 8], runs)})
    ax, other = figure.axes
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.get_lines()] == [
        ([0, 2, 8], values) for values in runs.values()
    ]
    assert [line.get_color() for line in other.get_lines()] == [color(0), color(1)]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylim()[0]) == ("FGSM", "ε / (1/255)", 0)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["baseline", "isda"]
    assert rendered(figure) > 20
    alone = sweeps({"occlusion": Sweep("side / pixels", [0, 4], {"run": [95.0, 90.0]})})
    assert alone.legends == []
    assert alone.axes[0].get_ylim()[0] > 80


def test_more_runs_than_colours_differ_by_their_dashes() -> None:
    runs = {str(number): [90.0, 80.0 - number] for number in range(20)}
    marks = {(line.get_color(), line.get_linestyle()) for line in sweeps({"a": Sweep("b", [0, 1], runs)}).axes[0].lines}
    assert len(marks) == 20


def test_corruptions_start_with_their_mean_and_at_the_clean_images() -> None:
    found = {"run": {"fog": [90.0, 80.0, 70.0], "jpeg_compression": [80.0, 70.0, 60.0]}}
    figure = corruptions(found, {"run": 95.0})
    assert [ax.get_title() for ax in figure.axes] == ["mean of all", "fog", "jpeg compression"]
    lines = [ax.get_lines()[0].get_ydata().tolist() for ax in figure.axes]
    assert lines == [[95, 85, 75, 65], [95, 90, 80, 70], [95, 80, 70, 60]]
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [0, 1, 2, 3]
    assert rendered(figure) > 5


def bowl(first: np.ndarray, second: np.ndarray, steep: float) -> np.ndarray:
    """A loss that climbs along the first direction alone."""
    return 0.1 + steep * first[:, None] ** 2 + 0 * second[None]


def test_landscapes_of_several_runs_have_one_scale_and_their_directions_in_place() -> None:
    first, second = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)
    low, high = bowl(first, second, 0.5), bowl(first, second, 1.0)
    figure = landscape({"baseline": low, "isda": high}, first.tolist(), second.tolist())
    surface, contours, steeper, others, bar = figure.axes
    assert surface.get_zlim() == steeper.get_zlim() == pytest.approx((0.1, 1.1))
    fills = [ax.collections[0] for ax in (contours, others)]
    assert fills[0].levels.tolist() == fills[1].levels.tolist()
    assert (fills[1].zmin, fills[1].zmax) == pytest.approx((0.1, 1.1))
    # Climbing along the first direction, the lines of equal loss run along the second.
    (line, *_) = others.collections[1].get_paths()[8].to_polygons(closed_only=False)
    assert np.ptp(line[:, 0]) < 1e-6 < np.ptp(line[:, 1])
    assert (contours.get_xlabel(), contours.get_ylabel(), bar.get_ylabel()) == (
        *("first direction", "second direction"),
        "loss / nats",
    )
    assert rendered(figure) > 50


def test_a_landscape_with_a_deep_bottom_is_logarithmic_and_leaves_out_what_is_not_finite() -> None:
    steps = np.linspace(-1, 1, 5)
    losses = bowl(steps, steps, 99.9)
    losses[0, 0], losses[4, 4] = np.nan, np.inf
    figure = landscape({"run": losses}, steps.tolist(), steps.tolist())
    assert figure.axes[0].get_zlim() == pytest.approx((-1, 2))
    shown = [label.get_text() for label in figure.axes[2].get_yticklabels()]
    assert shown == ["0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50", "100"]
    assert rendered(figure) > 50
    assert rendered(landscape({"run": np.full((5, 5), np.nan)}, steps.tolist(), steps.tolist())) > 5


def test_outliers_are_histograms_in_per_cent_of_each_data_sets_images() -> None:
    draws = np.random.default_rng(0)
    known, other = draws.beta(8, 1, 300), torch.tensor(draws.beta(2, 2, 100))
    figure = outliers(known, {"noise": other})
    shares = [patch.get_data().values for patch in figure.axes[0].patches]
    assert [values.sum() for values in shares] == pytest.approx([100, 100])
    assert shares[1] == pytest.approx(np.histogram(other.numpy(), 30, (0, 1))[0])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["own images", "noise"]
    assert rendered(figure) > 5
