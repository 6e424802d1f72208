"""The report: what a page of a run, of a comparison and of damaged folders says, and what it can never do."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.lab.report_folders import CLASSES, GAINS, NOTE, dump, save, write_run, write_suite

from augury.errors import UsageError
from augury_lab.experiment.suite import folder_of
from augury_lab.report import write_report
from augury_lab.report.compared import cost
from augury_lab.report.gather import gather
from augury_lab.report.measured import measured
from augury_lab.report.settings import differing, flatten
from augury_lab.report.words import answer

VOID = {"meta", "link", "img", "br", "wbr", "hr", "input"}


class Page(HTMLParser):
    """A page read as a browser reads it: its elements, its texts by where they stand, its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data.strip("\n")

    @property
    def shown(self) -> str:
        return " ".join("".join(data for tag, data in self.texts if tag not in ("script", "style")).split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def row(self, head: str) -> list[str]:
        return next(row for row in self.rows if row[0] == head)

    @property
    def charts(self) -> dict[str, Any]:
        (text,) = (d for (t, d) in self.texts if t == "script" and d.startswith('[{"key"'))
        assert "<" not in text
        return {chart["key"]: chart["variants"] for chart in json.loads(text)}


@pytest.fixture(autouse=True)
def _without_plotly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five megabytes of script are in `page` alone."""
    if "page" not in request.fixturenames:
        monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "suite"
    write_suite(folder)
    return folder


@pytest.fixture(scope="module")
def page(suite: Path) -> Page:
    return Page(write_report(suite))


def test_a_comparison_answers_the_question_first(page: Page) -> None:
    shown = page.shown
    assert "isda and dcutmix:k=3 are better than the baseline; agmax is worse than it; " in shown
    assert "resmooth+isda is not distinguishable from it." in shown
    assert "Highest mean test top-1: dcutmix:k=3, 93." in shown
    assert "4 seeds, 0 to 3" in shown
    assert "Difference: percentage points of top-1, composition minus baseline, paired by seed" in shown


def test_the_table_has_the_comparisons_cells(suite: Path, page: Page) -> None:
    found = gather(suite).comparison
    assert found is not None
    row = next(row for row in found.rows if row.composition == "agmax")
    assert row.difference is not None
    cells = page.row("agmax")
    assert cells[:4] == [
        "agmax",
        "worse",
        f"{row.best_top1.mean:.2f} ± {row.best_top1.std:.2f}",
        f"{row.difference.mean:+.2f}",
    ]
    assert page.rows[0][:2] == ["composition", "verdict"]
    assert page.row("isda, seed 2")[1:3] == ["8", "7"]


def test_the_charts_hold_the_numbers(suite: Path, page: Page) -> None:
    comparison = gather(suite).comparison
    assert comparison is not None
    (forest,) = page.charts["differences"]
    for place, row in enumerate(comparison.rows[1:]):
        assert row.difference is not None
        seeds, mean = forest["data"][2 * place : 2 * place + 2]
        pairs = zip(comparison.runs[row.composition], comparison.runs["baseline"], strict=True)
        assert seeds["x"] == pytest.approx([a.best["test"].top1 - b.best["test"].top1 for a, b in pairs], abs=1e-4)
        assert mean["x"][0] == pytest.approx(row.difference.mean, abs=1e-4)
        assert mean["x"][0] - mean["error_x"]["arrayminus"][0] == pytest.approx(row.difference.low, abs=1e-3)
        assert mean["x"][0] + mean["error_x"]["array"][0] == pytest.approx(row.difference.high, abs=1e-3)
    colours = [trace["meta"]["colour"] for trace in forest["data"][1::2]]
    assert colours == ["good", "good", "bad", "open"]

    curves = {variant["key"]: variant for variant in page.charts["curves"]}
    assert page.charts["curves"][0]["key"] == "val_top1"
    assert {"train_loss", "lr", "isda/lambda"} <= {*curves}
    assert not {"epoch", "step", "train_top1_share"} & {*curves}
    rows = [
        [
            json.loads(line)["val_top1"]
            for line in (suite / "isda" / f"seed-{s}" / "metrics.jsonl").read_text().splitlines()
        ]
        for s in range(4)
    ]
    band, line = (t for t in curves["val_top1"]["data"] if t["meta"]["series"] == "isda")
    assert line["y"] == pytest.approx(np.mean(rows, axis=0), rel=1e-5)
    assert band["y"] == pytest.approx([*np.max(rows, axis=0), *np.min(rows, axis=0)[::-1]], rel=1e-5)
    # Epoch 1 has no training accuracy.
    assert curves["train_top1"]["data"][-1]["x"] == [*range(2, 9)]

    passes = page.charts["cost"][0]
    assert [trace["x"] for trace in passes["data"]] == [[2400.0]] * 4 + [[4800.0]]
    # One colour a composition, in whichever chart.
    assert [t["meta"]["colour"] for t in passes["data"]] == [t["meta"]["colour"] for t in curves["lr"]["data"][-5:]]


@pytest.mark.parametrize(("equal", "first"), [("epochs", "forward_passes"), ("compute", "seconds")])
def test_costs_open_on_what_tells_the_compositions_apart(suite: Path, equal: str, first: str) -> None:
    comparison = gather(suite).comparison
    assert comparison is not None
    chart = cost(dataclasses.replace(comparison, equal=equal))
    assert chart is not None
    assert chart.variants[0].key == first
    assert {"forward_passes", "seconds"} <= {variant.key for variant in chart.variants}


def test_plotly_takes_the_charts(page: Page) -> None:
    from plotly.graph_objects import Figure

    for variants in page.charts.values():
        for variant in variants:
            # It raises for a property that plotly does not know.
            figure = Figure(data=variant["data"], layout=variant["layout"])
            assert len(figure.data) == len(variant["data"]) > 0


def test_only_what_differs_is_in_the_table_of_differences(page: Page) -> None:
    assert page.row("methods") == ["methods", "none", "isda", "dcutmix", "agmax", "resmooth, isda"]
    assert page.row("methods.dcutmix.k") == ["methods.dcutmix.k", "–", "–", "3", "–", "–"]
    assert page.row("optim.lr") == ["optim.lr", "0.03", "0.1"]
    assert not any(row[0] == "optim.momentum" for row in page.rows)
    assert page.row("python") == ["python", "3.11.7"]


def test_settings_that_differ_within_a_composition_are_told() -> None:
    configs = {
        "a": [{"seed": 0, "optim": {"lr": 1}}, {"seed": 1, "optim": {"lr": 2}}],
        "b": [{"seed": 0, "optim": {"lr": 1}}],
    }
    assert differing(configs) == {"optim.lr": {"a": "1 / 2", "b": "1"}}
    assert flatten({"a": {"b": None, "c": ["x:1", "y"]}, "d": {}}) == {"a.b": "unset", "a.c": "x:1 y", "d": "{}"}


def test_nothing_of_the_files_is_markup(page: Page) -> None:
    assert CLASSES[2] in page.shown
    assert f"{NOTE} (5 of 20 runs)" in page.shown
    assert "A & B <b>" in page.shown
    # The charts' data, plotly and the page's own script.
    assert len(page.of("script")) == 3
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_hostile_names_stay_text_in_the_charts_too(tmp_path: Path) -> None:
    name = "isda:x=<b></script><script>alert(1)</script>%{y}"
    write_suite(tmp_path / "suite", {"baseline": 0.0, name: 1.0}, (0, 1))
    page = Page(write_report(tmp_path / "suite"))
    assert len(page.of("script")) == 3
    assert page.row(name)
    (forest,) = page.charts["differences"]
    assert forest["layout"]["annotations"][0]["text"] == name.replace("<", "&lt;").replace(">", "&gt;")
    traces = [t for variants in page.charts.values() for v in variants for t in v["data"]]
    assert not [t for t in traces if "<" in t["name"]]
    # Names are put in by plotly, so that a name with plotly's own places in it is not filled in.
    assert not [t for t in traces if "alert" in t.get("hovertemplate", "")]


def test_the_page_can_ask_nothing_of_a_network(page: Page) -> None:
    for _, attributes in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name) or "data:"
            assert value.startswith(("data:", "#"))
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-")
    scripts = [data for tag, data in page.texts if tag == "script" and not data.startswith('[{"key"')]
    for script in scripts:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
    # plotly's buttons would offer to send the chart to its makers.
    assert "showSendToCloud: false" in scripts[-1]


def test_pictures_stand_in_the_page(page: Page) -> None:
    images = page.of("img")
    assert len(images) == 2 * len(GAINS)
    assert {image["alt"] for image in images} >= {
        "First training batch of isda, seed 0",
        "resmooth: losses of isda, seed 0",
    }
    assert images[0]["width"] == "120"
    uri = images[0]["src"] or ""
    assert base64.b64decode(uri.partition(",")[2]).startswith(b"\x89PNG")


def test_large_pictures_are_made_smaller(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 255, (600, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "run" / "figures" / "batch.png")
    image = Page(write_report(tmp_path / "run")).of("img")[0]
    assert (image["width"], image["height"]) == ("1400", "420")
    assert (image["src"] or "").startswith("data:image/jpeg;")
    assert len(image["src"] or "") < 1_400_000


def test_the_page_of_a_run(tmp_path: Path) -> None:
    result = write_run(tmp_path / "run", "isda", 0)
    assert result is not None
    page = Page(write_report(tmp_path / "run", tmp_path / "page.html"))
    assert f"{result.best['test'].top1:.2f} % test top-1" in page.shown
    assert (
        f"Epoch 7 of 8, chosen on the validation images. The last epoch: {result.last['test'].top1:.2f} %."
        in page.shown
    )
    assert NOTE in page.shown
    assert page.row("methods") == ["methods", "isda", "none"]
    assert page.row("isda") == ["isda", "augury-isda 0.1.0"]
    assert page.row("memory") == ["memory", "8.00 GiB"]
    curves = {variant["key"]: variant for variant in page.charts["curves"]}
    assert [t["name"] for t in curves["top-1 / %"]["data"]] == ["validation", "training"]
    assert not (tmp_path / "run" / "report.html").exists()


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path) -> None:
    write_run(tmp_path / "run", done=3)
    page = Page(write_report(tmp_path / "run"))
    assert "Not finished: 3 of 8 epochs are done." in page.shown
    assert f"augury resume {tmp_path / 'run'}" in page.shown
    assert page.charts["curves"]


def test_an_unfinished_comparison_shows_what_there_is(tmp_path: Path) -> None:
    names = ["baseline", "isda:x=1/2"]
    save(tmp_path, names, [0, 1])
    write_run(folder_of(tmp_path, names[0], 0), names[0], 0)
    write_run(folder_of(tmp_path, names[1], 0), names[1], 0, done=5)
    write_run(folder_of(tmp_path, names[0], 1), names[0], 1)
    page = Page(write_report(tmp_path))
    assert "Not finished: 2 of 4 runs are done." in page.shown
    assert "isda:x=1/2, seed 0: 5 of 8 epochs are done." in page.shown
    assert "Not begun: isda:x=1/2, seed 1." in page.shown
    assert page.row("isda:x=1/2, seed 0 (not finished)")[1] == "5"
    assert [*page.charts] == ["curves"]


def test_one_seed_says_nothing_of_better(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 9.0}, (0,))
    page = Page(write_report(tmp_path / "suite"))
    assert "One seed cannot tell a difference to the baseline from luck." in page.shown
    assert "better than" not in page.shown
    assert "error_x" not in page.charts["differences"][0]["data"][1]


def test_an_accuracy_that_is_not_a_number_is_left_out(tmp_path: Path) -> None:
    comparison = write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 1.0, "agmax": math.nan}, (0, 1))
    assert answer(comparison)[0].endswith("; agmax cannot be judged.")
    page = Page(write_report(tmp_path / "suite"))
    assert page.row("agmax")[2] == "not finite"
    assert {t["name"] for t in page.charts["differences"][0]["data"]} == {"isda"}
    assert [t["name"] for t in page.charts["cost"][0]["data"]] == ["baseline", "isda"]


def test_many_compositions_are_counted(tmp_path: Path) -> None:
    gains = {"baseline": 0.0, **{f"isda:x={n}": 3.0 * (n > 2) for n in range(6)}}
    comparison = write_suite(tmp_path / "suite", gains, (0, 1, 2, 3))
    assert answer(comparison) == [
        "Of 6 compositions 3 are better than the baseline and 3 are not distinguishable from it.",
        "Better: isda:x=3, isda:x=4 and isda:x=5.",
    ]


def test_none_of_many_is_said_at_once(tmp_path: Path) -> None:
    gains = {"baseline": 0.0, **{f"isda:x={n}": 0.0 for n in range(5)}}
    write_suite(tmp_path / "suite", gains, (0, 1, 2))
    shown = Page(write_report(tmp_path / "suite")).shown
    assert "None of the 5 compositions is distinguishable from the baseline." in shown
    assert "Of 5 compositions" not in shown


# A file, what in it is replaced (all of it when None) by what, and what the page says.
DAMAGE: dict[str, tuple[str, str | None, str | bytes, str]] = {
    "settings": ("isda/seed-1/config.json", None, "{", "isda/seed-1/config.json cannot be read"),
    "rows": (
        "isda/seed-1/metrics.jsonl",
        None,
        '{"epoch": 1, "lr": 1}\nnonsense\n{"epoch": 3}\n{"epoch": 4, "l',
        "metrics.jsonl: line 2 cannot be read and is left out.",
    ),
    "result": (
        "isda/seed-1/result.json",
        None,
        '{"best": []}',
        "isda/seed-1/result.json cannot be read: `epochs`: Field required.",
    ),
    "a word in a result": (
        "isda/seed-1/result.json",
        '"stage_seconds": 0.0',
        '"stage_seconds": "<b>"',
        "`costs.stage_seconds`",
    ),
    "table": ("comparison.json", None, "[]", "comparison.json: cannot be read"),
    "a word in the table": ("comparison.json", '"epochs": 4.0', '"epochs": "<b>"', "cannot be read: `rows.0.epochs`"),
    "a base without a row": ("comparison.json", '"base": "baseline"', '"base": "x"', "has no row of its base `x`"),
    "an infinite cost": ("comparison.json", '"epochs": 4.0', '"epochs": 1e999', "says of `baseline.epochs` what is no"),
    "picture": ("isda/seed-0/figures/batch.png", None, "no picture", "batch.png cannot be shown"),
    "no object": (
        "isda/seed-1/data.json",
        None,
        "[1]",
        "isda/seed-1/data.json cannot be read: it holds no JSON object.",
    ),
    "other data": ("isda/seed-1/data.json", None, '{"classes": ["a"]}', "the runs' images are not the same"),
    "not UTF-8": ("isda/seed-1/environment.json", None, b"\xff\xfe", "isda/seed-1/environment.json cannot be read"),
    "half a character": ("isda/seed-1/environment.json", None, '{"versions": {"a": "\\ud800"}}', "?"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named(tmp_path: Path, name: str) -> None:
    write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 1.0}, (0, 1), epochs=4)
    file, old, new, said = DAMAGE[name]
    path = tmp_path / "suite" / file
    if isinstance(new, bytes):
        path.write_bytes(new)
    else:
        path.write_text(new if old is None else path.read_text().replace(old, new))
    assert said in Page(write_report(tmp_path / "suite")).shown


@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e308])
@pytest.mark.parametrize("key", ["mean", "low", "high"])
def test_a_difference_that_is_no_number_breaks_no_page(tmp_path: Path, key: str, value: float) -> None:
    write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 1.0}, (0, 1), epochs=2)
    path = tmp_path / "suite" / "comparison.json"
    said = json.loads(path.read_text())
    said["rows"][1]["difference"][key] = value
    dump(path, said)
    page = Page(write_report(tmp_path / "suite"))
    told = f"comparison.json says of `isda.difference.{key}` what is no finite number." in page.shown
    assert told == (value != 1e308 and not (key == "mean" and math.isnan(value)))
    assert "curves" in page.charts


def test_what_lies_beside_a_run_is_none_of_the_comparisons(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 1.0}, (0, 1), epochs=2)
    write_run(tmp_path / "suite" / "baseline" / "seed-0-subset", epochs=2)
    assert "4 of 4" in Page(write_report(tmp_path / "suite")).shown


def test_a_table_without_rows_is_damaged(tmp_path: Path) -> None:
    write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 1.0}, (0, 1), epochs=4)
    path = tmp_path / "suite" / "comparison.json"
    dump(path, {**json.loads(path.read_text()), "rows": []})
    assert "comparison.json has no rows." in Page(write_report(tmp_path / "suite")).shown


@pytest.mark.parametrize("file", ["data.json", "environment.json", "metrics.jsonl"])
def test_what_is_missing_is_named(tmp_path: Path, file: str) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    assert f"{file} is missing" in Page(write_report(tmp_path / "run")).shown


def test_an_evaluation_is_shown_beside_and_by_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir()
    said: dict[str, Any] = {
        "runs": [{"name": "run", "measures": {"top1": 91.5, "curve": [1, 2]}, "images": 500}],
        "notes": ["<i>few</i>"],
        "files": ["confusion.png", "attacks.png"],
    }
    dump(folder / "evaluation.json", said)
    for name in said["files"]:
        Image.new("RGB", (10, 10)).save(folder / name)
    for place in (tmp_path / "run", folder):
        page = Page(write_report(place))
        assert page.row("top-1 / %") == ["top-1 / %", "91.500"]
        assert page.row("images") == ["images", "500"]
        assert "<i>few</i>" in page.shown
        shown = [image["alt"] for image in page.of("img")][:2]
        assert shown == ["Confusion matrix", "Attacks"]


EVALUATED: dict[str, Any] = {
    "name": "run",
    "measures": {"top1": 91.5},
    "attacks": [{"attack": "fgsm", "images": 50, "epsilons": [0, 1, 2.5], "top1": [90.0, 41.25, 3.5]}],
    "corruptions": {"clean": 90.5, "mean": 60.125, "groups": {"noise": 55.5}, "top1": {"fog": [1, 2, 3, 4, 5]}},
    "shifts": {"color_jitter": {"clean": 92.5, "strengths": [1, 2], "top1": [80.0, 71.0]}},
    "outliers": [{"name": "letters", "images": 9, "auroc": 88.75, "fpr95": 41.5, "confidence": 0.5}],
    "landscape": {"rise": 1.75, "loss": [[1.0, None]]},
}


def test_an_evaluation_shows_every_number_that_was_asked_for(tmp_path: Path) -> None:
    unlike = {**EVALUATED, "name": "other", "attacks": [], "landscape": {"rise": None}}
    dump(tmp_path / "evaluation.json", {"runs": [EVALUATED, unlike]})
    page = Page(write_report(tmp_path))
    for title, *cells in (
        ("top-1 / %", "91.500", "91.500"),
        ("FGSM not attacked, top-1 / %", "90.000", "–"),
        ("FGSM 1/255, top-1 / %", "41.250", "–"),
        ("FGSM 2.5/255, top-1 / %", "3.500", "–"),
        ("not corrupted, top-1 / %", "90.500", "90.500"),
        ("corrupted, mean top-1 / %", "60.125", "60.125"),
        ("corrupted by noise, mean top-1 / %", "55.500", "55.500"),
        ("not shifted, top-1 / %", "92.500", "92.500"),
        ("color jitter, mean top-1 of 2 strengths / %", "75.500", "75.500"),
        ("letters as outliers, AUROC / %", "88.750", "88.750"),
        ("letters taken for own / %", "41.500", "41.500"),
        ("rise of the loss nearby / nats", "1.750", "not finite"),
    ):
        assert page.row(title) == [title, *cells]


@pytest.mark.parametrize("wrong", [None, 5, "<b>", [1], [[1]], {"a": 1}, {"a": [1]}, {"groups": 3, "rise": "x"}, [{}]])
def test_a_damaged_evaluation_shows_what_is_left(wrong: Any) -> None:
    for key in EVALUATED:
        left = {"outliers": "top-1 / %"}.get(key, "letters as outliers, AUROC / %")
        assert measured({**EVALUATED, key: wrong})[left] in ("88.750", "91.500")
    for key in ("attacks", "outliers"):
        (whole,) = EVALUATED[key]
        for at in whole:
            assert measured({**EVALUATED, key: [{**whole, at: wrong}]})["top-1 / %"] == "91.500"
    for key in ("corruptions", "landscape"):
        for at in EVALUATED[key]:
            assert measured({**EVALUATED, key: {**EVALUATED[key], at: wrong}})["top-1 / %"] == "91.500"


def test_a_folder_that_moved_is_read_where_it_is(suite: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(suite, moved)
    assert [run.result is not None for run in gather(moved).runs] == [True] * 20
    page = Page(write_report(moved))
    assert str(suite) not in (moved / "report.html").read_text()
    assert len(page.of("img")) == 2 * len(GAINS)


def test_a_report_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("old")
    assert write_report(tmp_path / "run") == tmp_path / "run" / "report.html"
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    write_run(tmp_path / "run")
    for folder, said in {
        "nothing": "there is no such folder",
        "file": "is a file, not a folder",
        "empty": r"holds no run \(config.json\), no comparison \(comparison.json\) and no evaluation",
    }.items():
        with pytest.raises(UsageError, match=said):
            write_report(tmp_path / folder)
    with pytest.raises(UsageError, match="is a folder. Name a file: --output"):
        write_report(tmp_path / "run", tmp_path)
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(tmp_path / "run", tmp_path / "nowhere" / "page.html")
    assert not re.search("partial", " ".join(path.name for path in tmp_path.rglob("*")))


def test_a_page_of_twelve_runs_takes_less_than_three_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_suite(tmp_path / "suite", {"baseline": 0.0, "isda": 1.0, "agmax": 0.0}, (0, 1, 2, 3), epochs=300)
    monkeypatch.undo()
    started = time.process_time()
    write_report(tmp_path / "suite")
    assert time.process_time() - started < 3
