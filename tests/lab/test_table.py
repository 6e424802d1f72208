"""A comparison's table: means over seeds, texts that say what they are, files that are read back."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.lab.made_up_suites import IMAGES, result, suite

from augury.errors import UsageError
from augury_lab.experiment.statistics import Spread, judge
from augury_lab.experiment.table import Comparison, columns, cost_columns, explanation, read, summarise, write
from augury_lab.experiment.wording import TEXTS
from augury_train.training.result import Costs

SCORES = {
    "baseline": [90.0, 90.5, 91.0, 90.2, 90.8],
    "isda": [91.5, 91.9, 92.5, 91.8, 92.4],
    "agmax": [90.5, 90.4, 91.5, 90.1, 91.4],
}


def near(mean: float, std: float | None) -> Spread:
    """A spread equal up to rounding."""
    return Spread(pytest.approx(mean), None if std is None else pytest.approx(std))  # type: ignore[arg-type]


def test_rows_are_means_over_seeds_and_the_base_is_first(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    assert [row.composition for row in found.rows] == ["baseline", "isda", "agmax"]
    assert (found.base, found.split, found.equal, found.seeds) == ("baseline", "test", "epochs", [0, 1, 2, 3, 4])
    row = found.rows[1]
    std = float(np.std(SCORES["isda"], ddof=1))
    assert row.best_top1 == near(float(np.mean(SCORES["isda"])), std)
    assert row.last_top1 == near(float(np.mean(SCORES["isda"])) - 0.5, std)
    assert (row.top5, row.nll, row.ece) == (near(99, 0), near(0.3, 0), near(2, 0))
    assert found.rows[0].difference is None
    assert {r.composition: r.difference for r in found.rows[1:]} == judge(SCORES, "baseline", IMAGES)


def test_the_base_is_first_wherever_it_was_run(tmp_path: Path) -> None:
    runs = {name: [result(tmp_path / name / "seed-0", values[0])] for name, values in SCORES.items()}
    found = summarise(runs, "agmax", "val", "compute", [7], IMAGES, tmp_path)
    assert [row.composition for row in found.rows] == ["agmax", "baseline", "isda"]
    assert list(found.runs) == ["agmax", "baseline", "isda"]
    assert found.rows[2].best_top1 == Spread(92.5, None)
    assert found.rows[2].difference is not None
    assert found.rows[2].difference.mean == pytest.approx(1.0)


def test_costs_are_means_and_memory_is_the_largest(tmp_path: Path) -> None:
    runs = [
        result("a/seed-0", 90, epochs=4, costs=Costs(100, 20, 1000, 4000, 800, 3 * 2**30)),
        result("a/seed-1", 91, epochs=6, costs=Costs(300, 40, 2000, 6000, 800, 2**30)),
    ]
    row = summarise({"a": runs}, "a", "test", "epochs", [0, 1], IMAGES, tmp_path).rows[0]
    assert (row.epochs, row.seconds, row.stage_seconds, row.images_per_second) == (5, 200, 30, 1500)
    assert (row.forward_passes, row.peak_bytes) == (5000, 3 * 2**30)
    unknown = [runs[0], replace(runs[1], costs=replace(runs[1].costs, peak_bytes=None))]
    assert summarise({"a": unknown}, "a", "test", "epochs", [0, 1], IMAGES, tmp_path).rows[0].peak_bytes is None


def test_a_number_of_runs_that_is_not_that_of_the_seeds_is_refused(tmp_path: Path) -> None:
    runs = {"baseline": [result("b/seed-0", 90), result("b/seed-1", 90)], "isda": [result("i/seed-0", 90)]}
    with pytest.raises(ValueError, match="isda has 1 runs for 2 seeds"):
        summarise(runs, "baseline", "test", "epochs", [0, 1], IMAGES, tmp_path)
    with pytest.raises(ValueError, match="base agmax is not among"):
        summarise({"isda": runs["isda"]}, "agmax", "test", "epochs", [0], IMAGES, tmp_path)


def test_what_is_written_is_read_back_where_the_folder_is_now(tmp_path: Path) -> None:
    found = suite(tmp_path / "here", SCORES)
    write(found)
    assert read(tmp_path / "here") == found
    (tmp_path / "here").rename(tmp_path / "there")
    moved = read(tmp_path / "there")
    assert moved.rows == found.rows
    assert Path(moved.runs["isda"][2].folder) == tmp_path / "there" / "isda" / "seed-2"
    assert not list((tmp_path / "there").glob("*.partial"))


def test_the_json_is_strict_also_where_a_loss_is_not_finite(tmp_path: Path) -> None:
    runs = {
        "baseline": [result(tmp_path / "baseline" / "seed-0", 90, top5=None)],
        "isda": [result(tmp_path / "isda" / "seed-0", 10, top5=None, nll=math.inf, ece=math.nan)],
    }
    write(summarise(runs, "baseline", "test", "epochs", [0], IMAGES, tmp_path))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    said = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)
    assert sorted(said) == ["base", "equal", "images", "rows", "runs", "seeds", "split"]
    assert said["rows"][1]["nll"] == {"mean": None, "std": None}
    again = read(tmp_path)
    assert math.isnan(again.rows[1].nll.mean)
    assert math.isnan(again.runs["isda"][0].best["test"].nll)
    assert again.rows[1].top5 is None
    assert "not finite" in columns(again)[1][1]


def test_the_csv_is_flat_and_names_units(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    write(found)
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        base, isda, _ = csv.DictReader(file)
    difference = found.rows[1].difference
    assert difference is not None
    assert isda["composition"] == "isda"
    assert isda["seeds"] == "5"
    assert float(isda["best_top1_percent_mean"]) == found.rows[1].best_top1.mean
    assert float(isda["difference_points_low95"]) == difference.low
    assert float(isda["p_holm"]) == difference.p_holm
    assert isda["verdict"] == "better"
    assert float(isda["peak_memory_bytes"]) == 2**30
    assert (base["difference_points_mean"], base["verdict"]) == ("", "")
    assert all("top1" not in name or "percent" in name for name in isda)


def cells(found: Comparison, name: str) -> dict[str, str]:
    """A composition's cells by title."""
    titles, rows = columns(found)
    return dict(zip(titles, next(row for row in rows if row[0] == name), strict=True))


def test_the_cells_are_what_a_paper_prints(tmp_path: Path) -> None:
    isda = cells(suite(tmp_path, SCORES), "isda")
    assert isda["top-1 / %"] == "92.02 ± 0.42"
    assert isda["last epoch / %"] == "91.52 ± 0.42"
    assert isda["NLL / nats"] == "0.300 ± 0.000"
    assert isda["difference"] == "+1.52"
    assert isda["95 % interval"] == "+1.42 to +1.62"
    assert isda["p (Holm)"] == "< 0.001"
    assert isda["verdict"] == "better"
    assert cells(suite(tmp_path / "b", SCORES), "baseline")["verdict"] == ""


def test_a_p_value_beside_the_level_is_not_rounded_onto_it(tmp_path: Path) -> None:
    found = suite(tmp_path, SCORES)
    difference = found.rows[2].difference
    assert difference is not None
    shown = []
    for value in (0.0496, 0.0504, 0.0004, 0.2):
        row = replace(found.rows[2], difference=replace(difference, p_holm=value))
        shown.append(cells(replace(found, rows=[found.rows[0], row]), "agmax")["p (Holm)"])
    assert shown == ["0.0496", "0.0504", "< 0.001", "0.200"]


def test_columns_in_which_nothing_stands_are_left_out(tmp_path: Path) -> None:
    runs = {name: [result(f"{name}/seed-0", values[0], top5=None)] for name, values in SCORES.items()}
    titles, rows = columns(summarise(runs, "baseline", "test", "epochs", [0], IMAGES, tmp_path))
    assert titles == ["composition", "top-1 / %", "last epoch / %", "NLL / nats", "ECE / %", "difference", "verdict"]
    assert all(len(row) == len(titles) for row in rows)
    assert rows[1][1:3] == ["91.50", "91.00"]
    assert set(TEXTS) <= set(titles)


def test_costs_are_readable(tmp_path: Path) -> None:
    costs = Costs(7260.0, 66.0, 812.4, 12_345_678, 10, 1536 * 2**20)
    runs = {"a": [result("a/seed-0", 90)], "b": [result("b/seed-0", 90, costs=costs)]}
    titles, rows = cost_columns(summarise(runs, "a", "test", "epochs", [0], IMAGES, tmp_path))
    assert dict(zip(titles, rows[0], strict=True)) == {
        **{"composition": "a", "epochs": "8", "forward passes": "500 k", "time": "60.0 s", "of it stages": ""},
        **{"images/s": "1,000", "peak memory": "1.00 GiB"},
    }
    assert rows[1][2:] == ["12.35 M", "2.0 h", "66.0 s", "812", "1.50 GiB"]


def test_the_explanation_says_where_the_numbers_flatter(tmp_path: Path) -> None:
    found = suite(tmp_path / "a", SCORES)
    assert "5 seeds, on 10,000 test images" in explanation(found)
    assert "best on the validation images" in explanation(found)
    assert "for 2 compositions" in explanation(found)
    assert "in 80 % of cases" in explanation(found)
    assert "80 %" not in explanation(replace(found, rows=found.rows[:2]))
    assert "flatters" not in explanation(found)
    assert "flatters" in explanation(suite(tmp_path / "b", SCORES, split="val"))
    compute = explanation(suite(tmp_path / "c", SCORES, equal="compute"))
    assert "None had more forward passes than baseline" in compute
    one = explanation(suite(tmp_path / "d", {name: values[:1] for name, values in SCORES.items()}))
    assert one.startswith("One seed, on")
    assert "One seed cannot tell a difference from luck." in one


def test_the_markdown_shows_any_name_as_it_is(tmp_path: Path) -> None:
    write(suite(tmp_path, {"baseline": [90.0, 91.0], "a_b|c*d<e>": [91.0, 92.0]}))
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert r"| a\_b\|c\*d\<e\> | 91.50 ± 0.71 |" in text
    quality, costs, words = text.split("\n\n")
    for table in (quality, costs):
        widths = {line.replace(r"\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1
    assert words.startswith("Mean ± standard deviation over 2 seeds")


def test_no_table_carries_out_a_name(tmp_path: Path) -> None:
    write(suite(tmp_path, {"baseline": [90.0, 91.0], "=1+1\x1b[2J": [89.0, 90.0]}))
    with (tmp_path / "comparison.csv").open(encoding="utf-8", newline="") as file:
        _, row = csv.DictReader(file)
    assert row["composition"] == "'=1+1\\x1b[2J"
    assert row["difference_points_mean"] == "-1.0"
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "=1+1" in text
    assert "\x1b" not in text


def test_a_folder_without_a_comparison_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished comparison"):
        read(tmp_path)
    for text in ("{", "[]", '{"rows": []}', '{"runs": {"a": [{}]}}'):
        (tmp_path / "comparison.json").write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=r"comparison\.json: cannot be read"):
            read(tmp_path)
