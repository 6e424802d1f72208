"""`augury uncertainty` and `--subset`: what is printed, and how refusals end."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

import augury_cli.main

SHORT = "--dataset digits --set optim.epochs=1 --set optim.batch_size=20 --set train.trackers=none"


def augury(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run the program on a line; its exit code, stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["augury", *shlex.split(line)])
        with pytest.raises(SystemExit) as end:
            augury_cli.main.main()
    out, err = capsys.readouterr()
    code = end.value.code
    return (code if isinstance(code, int) else 0), out, err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.chdir(tmp_path)
    code, _, err = augury(f"run {SHORT} --set data.images_per_class=10 --output first", capsys)
    assert code == 0, err
    return "first"


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


def test_refusals_are_one_line_with_exit_code_2(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    for line, told in (
        (f"uncertainty {run}", "none of its methods (none) mixes images"),
        (f"uncertainty {run} --with dcutmix --keep 1.5", "--keep must be more than 0 and at most 1, got 1.5."),
        ("uncertainty absent --with dcutmix", "absent: no run folder"),
        (f"run {SHORT} --subset absent.json --output second", "data.subset absent.json: no such file."),
    ):
        code, out, err = augury(line, capsys)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert told in err
    assert not Path(run, "uncertainty").exists()
