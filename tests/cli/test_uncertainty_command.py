"""`augury uncertainty` and `--subset`: what is printed, and how refusals end."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.cli import in_process

from augury_cli.uncertainty import _fitting

SHORT = "--dataset digits --set optim.epochs=1 --set optim.batch_size=20 --set train.trackers=none"


def augury(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the program on a line; its exit code, stdout and stderr."""
    return in_process.augury(capsys, *shlex.split(line))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(tmp_path)
    code, _, err = augury(f"run {SHORT} --set data.images_per_class=10 --output first", capsys)
    assert code == 0, err
    return "first"


@pytest.mark.slow
def test_from_a_run_to_a_run_on_its_subset(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"uncertainty {run} --with dcutmix:k=2 --passes 3 --keep 0.3"
    code, out, _ = augury(line, capsys)
    assert code == 0
    assert "images       100, each mixed 3 times by dcutmix" in out
    command = next(text for text in out.splitlines() if text.startswith("train on the subset: augury "))
    code, out, _ = augury(line + " --json --seed 1 --output other", capsys)
    assert code == 0
    summary = json.loads(out)
    assert summary["files"] == [f"other/{name}" for name in ("uncertainty.csv", "uncertainty.png", "subset.json")]
    assert summary["entropy"] == pytest.approx(summary["expected"] + summary["information"])
    code, _, err = augury(command.removeprefix("train on the subset: augury "), capsys)
    assert code == 0, err
    assert json.loads(Path("first-subset", "data.json").read_text())["images"]["train"] == 30


def test_the_most_uncertain_images_are_named(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = augury(f"uncertainty {run} --with dcutmix:k=2 --passes 1", capsys)
    assert code == 0
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("most uncertain"))
    assert lines[start].split() == ["most", "uncertain", "class", "entropy", "margin"]
    with Path(run, "uncertainty", "uncertainty.csv").open(newline="") as file:
        wanted = list(csv.DictReader(file))[:5]
    shown = [line.split() for line in lines[start + 1 : start + 6]]
    assert [cells[:-2] for cells in shown] == [[*row["name"].split(), row["class"]] for row in wanted]
    for cells, row in zip(shown, wanted, strict=True):
        assert float(cells[-2]) == pytest.approx(float(row["entropy"]), abs=0.006)
        assert float(cells[-1]) == pytest.approx(float(row["margin"]), abs=0.006)
    assert len(lines) == start + 6


@pytest.mark.parametrize(
    ("batch", "parts", "images", "wanted"),
    [
        (64, 1, 64, []),
        (64, 1, 63, ["optim.batch_size=32"]),
        (128, 1, 32, ["optim.batch_size=32"]),
        (90, 3, 50, ["optim.batch_size=48"]),
        (64, 32, 20, ["optim.batch_size=16", "optim.accumulation=1"]),
    ],
)
def test_a_batch_that_the_subset_cannot_fill_is_made_smaller(
    batch: int, parts: int, images: int, wanted: list[str]
) -> None:
    optim = SimpleNamespace(batch_size=batch, accumulation=parts)
    found: Any = SimpleNamespace(subject=SimpleNamespace(config=SimpleNamespace(optim=optim)))
    assert [word for word in _fitting(found, images) if word != "--set"] == wanted


def test_the_proposed_command_trains_on_fewer_images_than_a_batch(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = augury(f"uncertainty {run} --with dcutmix:k=2 --passes 1 --keep 0.1", capsys)
    assert code == 0
    command = next(text for text in out.splitlines() if text.startswith("train on the subset: augury "))
    assert "--set optim.batch_size=8 --output" in command
    code, _, err = augury(command.removeprefix("train on the subset: augury "), capsys)
    assert code == 0, err


@pytest.mark.slow
def test_the_run_that_is_proposed_is_outside_of_a_suite(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    top = Path.cwd()

    def proposed() -> list[str]:
        code, out, err = augury("uncertainty . --with dcutmix:k=2 --passes 1 --keep 0.5", capsys)
        assert code == 0, err
        (line,) = [text for text in out.splitlines() if text.startswith("train on the subset: ")]
        return shlex.split(line)

    monkeypatch.chdir(run)
    assert proposed()[-1] == str(top / "first-subset")
    monkeypatch.chdir(top)
    Path("suite", "baseline").mkdir(parents=True)
    Path("suite", "suite.json").touch()
    Path(run).rename("suite/baseline/seed-0")
    monkeypatch.chdir("suite/baseline/seed-0")
    assert proposed()[-1] == str(top / "suite-baseline-seed-0-subset")


def test_refusals_are_one_line_with_exit_code_2(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, told in (
        (f"uncertainty {run}", "none of its methods (none) mixes images"),
        (f"uncertainty {run} --with dcutmix --keep 1.5", "--keep must be more than 0 and at most 1, got 1.5."),
        (f"uncertainty {run} --with dcutmix --end foo", "--end must be uncertain or certain, got `foo`."),
        (f"uncertainty {run} --with dcutmix --output /proc/self", "/proc/self: cannot be written to"),
        (f"uncertainty {run} --with dcutmix --output {run}", "is a run's folder"),
        ("uncertainty absent --with dcutmix", "absent: no run folder"),
        (f"run {SHORT} --subset absent.json --output second", "data.subset absent.json: no such file."),
    ):
        code, out, err = augury(line, capsys)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert told in err
    assert not Path(run, "uncertainty").exists()
