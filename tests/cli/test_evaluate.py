"""`augury evaluate` as its user meets it: what it prints, writes and returns, with good input and bad."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.image import imread
from tests.cli.in_process import augury
from tests.lab.evaluated_runs import finished

from augury_cli.evaluate import _print_classes, _print_confusions
from augury_lab.evaluation.metrics import Classes, ClassRow


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `first` and `second`."""
    folder = tmp_path_factory.mktemp("runs")
    finished(folder / "first")
    finished(folder / "second", optim={"lr": 0.02, "epochs": 2})
    return folder


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than all the rest."""
    monkeypatch.setattr("augury_lab.evaluation.writing.drawn", lambda *_: iter(()))


def cells(out: str, title: str) -> list[str]:
    """What follows a row's title."""
    line = next(line for line in out.splitlines() if line.startswith(title))
    return line.removeprefix(title).split()


def test_one_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = augury(capsys, "evaluate", str(runs / "first"), "--device", "cpu")
    assert code == 0
    folder = runs / "first" / "evaluation"
    said = json.loads((folder / "evaluation.json").read_text())["runs"][0]
    assert out.startswith("540 images of the test split, best weights\n")
    assert cells(out, "top-1 / %") == ["higher", f"{said['measures']['top1']:.2f}"]
    assert cells(out, "calibration error / %") == ["lower", f"{said['measures']['ece']:.2f}"]
    row = said["classes"]["rows"][7]
    shares = [f"{row[key]:.1f}" if row[key] is not None else "-" for key in ("recall", "precision", "f1")]
    assert cells(out, "7 ") == [str(row["support"]), *shares]
    assert "most often taken for another: " in out
    assert "FGSM" not in out
    assert out.splitlines()[-1].startswith(f"files in {folder}: evaluation.json, per_class.csv, confusion.csv")
    assert imread(folder / "worst.png").shape[0] > 100


@pytest.mark.usefixtures("_undrawn")
def test_several_runs_side_by_side_with_attacks(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--fgsm", "0,4", "--pgd", "2", "--images", "40", "--ood", "synthetic:size=8,images=50", "--device", "cpu"]
    code, out, err = augury(capsys, "evaluate", str(runs / "first"), str(runs / "second"), *asked)
    assert code == 0
    said = json.loads(Path("evaluation/evaluation.json").read_text())["runs"]
    for title, number in (("FGSM not attacked", 0), ("FGSM 4/255", 1)):
        expected = [f"{run['attacks'][0]['top1'][number]:.2f}" for run in said]
        assert cells(out, f"{title}, top-1 / %") == ["higher", *expected]
    assert cells(out, "PGD 2/255, top-1 / %")[1:] == [f"{run['attacks'][1]['top1'][1]:.2f}" for run in said]
    assert cells(out, "synthetic:size=8,images=50 as outliers, AUROC / %")[0] == "higher"
    assert cells(out, "recall / %") == ["images", "first", "second"]
    assert "second: most often taken for another" in out
    assert "40 of the 540 images" in err
    assert Path("evaluation/robustness.csv").is_file()


@pytest.mark.usefixtures("_undrawn")
def test_json_is_the_file(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = augury(capsys, "evaluate", str(runs / "first"), "--json", "--output", "here", "--device", "cpu")
    assert code == 0
    assert json.loads(out) == json.loads(Path("here/evaluation.json").read_text())


@pytest.mark.usefixtures("_undrawn")
def test_all_is_everything_but_other_data(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--all", "--fgsm", "2", "--images", "8", "--points", "5", "--output", "here", "--device", "cpu"]
    code, out, _ = augury(capsys, "evaluate", str(runs / "first"), *asked)
    assert code == 0
    said = json.loads(Path("here/evaluation.json").read_text())["runs"][0]
    assert [attack["epsilons"] for attack in said["attacks"]] == [[0, 2], [0, 4]]
    assert cells(out, "corrupted, mean top-1 / %") == ["higher", f"{said['corruptions']['mean']:.2f}"]
    occlusion = said["shifts"]["occlusion"]["top1"]
    assert cells(out, "  occlusion, mean of 5 strengths") == ["higher", f"{sum(occlusion) / 5:.2f}"]
    assert cells(out, "rise of the loss nearby / nats") == ["lower", f"{said['landscape']['rise']:.3f}"]
    assert said["outliers"] == []


BAD = {
    "epsilon below 0": (["--fgsm", "1,-2"], "--fgsm: an epsilon must be from 0 to 255, in units of 1/255"),
    "epsilon of no number": (["--pgd", "small"], "--pgd takes numbers with commas between them"),
    "split": (["--split", "tests"], "split must be one of test, val, train, got `tests`"),
    "weights": (["--weights", "first"], "weights must be one of best, last, got `first`"),
    "device": (["--device", "tpu"], "--device must be one of auto, cpu, cuda, cuda:N, got `tpu`"),
    "images": (["--images", "0"], "--images must be 1 or more, got 0"),
    "batch size": (["--batch-size", "0"], "--batch-size must be 1 or more, got 0"),
    "points": (["--landscape", "--points", "20"], "--points must be an odd number of 5 or more, got 20"),
    "other data": (["--ood", "nothere"], "unknown data set `nothere`"),
    "own data": (["--ood", "digits"], "--ood digits: these are the run's own images"),
    "a run twice": (["{runs}/first"], "is named twice"),
    "no run": (["nowhere"], "nowhere: no run folder, it has no config.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_a_line(name: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, told = BAD[name]
    arguments = [argument.replace("{runs}", str(runs)) for argument in arguments]
    code, out, err = augury(capsys, "evaluate", str(runs / "first"), *arguments)
    assert code == 2
    assert out == ""
    assert told in err
    assert len(err.strip().splitlines()) <= 2


def test_no_run_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = augury(capsys, "evaluate")
    assert code == 2
    assert "RUN" in err


def test_long_names_of_classes_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    row = ClassRow("x" * 200, 3, 2, 50.0, 50.0, 50.0)
    classes = Classes(50, 50, [row, replace(row, name="short")], [[1, 1], [0, 1]])
    found: Any = SimpleNamespace(name="run", classes=classes)
    _print_classes([found])
    _print_classes([found, found])
    _print_confusions(found, several=False)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 100
    assert sum("x" * 27 + "…" in line for line in lines) == 3
