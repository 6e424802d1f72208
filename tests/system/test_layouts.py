"""Layouts of images that people bring, given to the installed command: refused with what was found, nothing written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cli.in_process import augury

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200)]


def put(path: Path, kind: int, seed: int) -> None:
    noise = np.random.default_rng([kind, seed]).normal(0, 25, (24, 24, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(COLOURS[kind]) + noise).clip(0, 255).astype("uint8")).save(path)


def table(root: Path) -> None:
    for number in range(60):
        put(root / "train" / f"img_{number:03d}.jpg", number % 3, number)
    for number in range(10):
        put(root / "test" / f"t_{number:03d}.jpg", number % 3, 100 + number)
    rows = [f"img_{number:03d},{('healthy', 'rust', 'scab')[number % 3]}" for number in range(60)]
    (root / "train.csv").write_text("\n".join(["image_id,label", *rows, ""]))


def flat_splits(root: Path) -> None:
    for split, count in (("train", 30), ("val", 6), ("test", 8)):
        for number in range(count):
            put(root / split / f"{number}.jpg", number % 2, number)


def odd_split_names(root: Path) -> None:
    for split, count in (("train_images", 12), ("val_images", 6)):
        for kind, name in enumerate(("cat", "dog")):
            for number in range(count):
                put(root / split / name / f"{number}.jpg", kind, number)


CASES = {
    table: "`test` (10 images) and `train` (60 images) are named like splits, not classes; beside them: train.csv.",
    flat_splits: "`test` (8 images) and `train` (30 images) and `val` (6 images) are named like splits, not classes.",
    odd_split_names: "`train_images` (2 folders: cat, dog) and `val_images` (2 folders: cat, dog) are named like spl",
}


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("augury")
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_layout_with_splits_for_classes_is_refused(
    case: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    case(tmp_path / "data")  # type: ignore[operator]
    before = sorted(tmp_path.rglob("*"))
    done = command("run", "--dataset", "data", "--set", "optim.epochs=1", "--output", "run", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    first, second = done.stderr.splitlines()
    assert first.startswith(f"{tmp_path}/data: {CASES[case]}")  # type: ignore[index]
    assert "train/<class>/*.jpg" in second
    assert sorted(tmp_path.rglob("*")) == before


QUICK = ("--set=optim.epochs=1", "--set=optim.batch_size=4", "--set=data.image_size=24", "--set=device=cpu")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code, _, err = augury(capsys, *arguments)
    assert code == 2, err
    assert "`test` (20 images) and `train` (20 images) are named like splits, not classes" in err
    return err


@pytest.mark.slow
def test_runs_that_began_with_such_classes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run of before the refusal has splits for classes in its folder, as this one has after the renaming."""
    monkeypatch.setenv("AUGURY_DATA", str(tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    for kind, name in enumerate(("a", "b")):
        for number in range(20):
            put(tmp_path / "data" / name / f"{number}.jpg", kind, number)
    start = ("--dataset", "data", "--model", "test_resnet", *QUICK)
    code, _, err = augury(capsys, "run", *start, "--output", "old")
    assert code == 0, err
    for name, split in (("a", "train"), ("b", "test")):
        (tmp_path / "data" / name).rename(tmp_path / "data" / split)
    for file in ("data.json", "result.json"):
        text = (tmp_path / "old" / file).read_text()
        (tmp_path / "old" / file).write_text(text.replace('"a"', '"test"').replace('"b"', '"train"'))
    commands: Sequence[Sequence[str]] = (
        ("evaluate", "old", "--output", "evaluated"),
        ("uncertainty", "old", "--output", "uncertain"),
        ("preview", *start, "--output", "preview.png"),
        ("run", *start, "--dry-run"),
        ("compare", *start, "--with", "isda", "--output", "compared"),
    )
    for arguments in commands:
        refused(capsys, *arguments)
    (tmp_path / "old" / "result.json").unlink()
    refused(capsys, "resume", "old")
    assert {path.name for path in tmp_path.iterdir()} == {"data", "old", "root"}
