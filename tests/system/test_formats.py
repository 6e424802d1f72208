"""Files of format 1, written before files carried a number, keep their meaning; those of a later augury are refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.cli.in_process import augury as command

import augury
from augury.errors import UsageError
from augury_lab.experiment import runner
from augury_train.backbones.weights import describe
from augury_train.config import load_config, read_config, read_recipe
from augury_train.formats import FORMAT, check_format
from augury_train.training.checkpoint import checkpoints, save_checkpoint
from augury_train.training.recorder import read_rows
from augury_train.training.state import load_state

OLD = Path(__file__).parents[1] / "data" / "format1"
LR, START, WARM, EPOCHS, STEPS = 0.1, 1e-5, 3, 8, 20
"""Of its run."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the old files."""
    return shutil.copytree(OLD, tmp_path / "old")


def rate_of_format_1(step: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < WARM * STEPS:
        return START + (LR - START) * step / (WARM * STEPS)
    return LR * (1 + math.cos(math.pi * step / (EPOCHS * STEPS))) / 2


def test_a_run_of_format_1_goes_on_with_its_schedule_and_average_and_says_so(old: Path) -> None:
    result = augury.resume(old / "unfinished", progress=False)
    assert [line for line in result.notes if "are of format 1" in line and "train.ema" in line]
    assert [line for line in result.notes if "warmup_prefix=false" in line]
    config = load_config(old / "unfinished" / "config.json")
    assert (config.format, config.schedule.warmup_prefix, config.train.ema_warmup) == (1, False, True)
    rows, whole = (read_rows(old / name / "metrics.jsonl") for name in ("unfinished", "finished"))
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    for row, was in zip(rows, whole, strict=True):
        # Other processors round otherwise, and 63 steps let that grow.
        assert row["train_loss"] == pytest.approx(was["train_loss"], abs=0.02), row["epoch"]
        assert row["isda/lambda"] == pytest.approx(was["isda/lambda"])
    assert rows[4]["train_loss"] == pytest.approx(whole[4]["train_loss"], abs=1e-4), "three steps after the checkpoint"
    # Rows that are written now have the rate of the epoch's last step.
    for row in rows[4:]:
        assert row["lr"] == pytest.approx(rate_of_format_1(row["step"] - 1), rel=1e-9)
    mine, theirs = (load_file(old / name / "last.safetensors") for name in ("unfinished", "finished"))
    apart = max(float((mine[key].double() - theirs[key].double()).abs().max()) for key in theirs)
    assert apart < 0.05


SUITE = {
    "data": {"dataset": "digits", "images_per_class": 20},
    "model": {"name": "densenetbc100_12_cifar", "kwargs": {"growth_rate": 4, "block_config": [2, 2, 2]}},
    "optim": {"lr": 0.1, "epochs": 4, "batch_size": 40},
    "schedule": {"warmup_epochs": 2},
    "train": {"trackers": []},
}
"""Settings of the comparison, as they are given today."""


@pytest.mark.parametrize("settings", [SUITE, read_config(SUITE)], ids=["dict", "RunConfig"])
def test_a_comparison_of_format_1_goes_on_with_the_call_that_began_it(old: Path, settings: Any) -> None:
    place = old / "suite"
    shutil.rmtree(place / "dcutmix" / "seed-1")
    comparison = augury.compare(["dcutmix"], settings=settings, seeds=2, folder=place, progress=False)
    assert len(comparison.rows) == 2
    fresh = load_config(place / "dcutmix" / "seed-1" / "config.json")
    assert (fresh.format, fresh.schedule.warmup_prefix) == (1, False)
    assert json.loads((place / "suite.json").read_text())["config"]["format"] == 1
    now, was = (read_rows(folder / "dcutmix" / "seed-1" / "metrics.jsonl") for folder in (place, OLD / "suite"))
    for row, before in zip(now, was, strict=True):
        assert row["train_loss"] == pytest.approx(before["train_loss"], abs=0.02)


def test_a_comparison_of_format_1_keeps_the_epochs_that_it_measured(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.loads((old / "suite" / "suite.json").read_text())
    said |= {"equal": "compute", "epochs": {"baseline": 4, "dcutmix": 3}}
    (old / "suite" / "suite.json").write_text(json.dumps(said))
    shutil.rmtree(old / "suite" / "dcutmix")

    def measured(*_: Any) -> Any:
        raise AssertionError("measured anew")

    monkeypatch.setattr(runner, "equal_compute", measured)
    augury.compare(["dcutmix"], settings=SUITE, seeds=2, equal="compute", folder=old / "suite", progress=False)
    assert load_config(old / "suite" / "dcutmix" / "seed-1" / "config.json").optim.epochs == 3


@pytest.mark.parametrize("name", ["finished", "export"])
def test_a_network_of_format_1_predicts(old: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    image = old / "image.png"
    Image.new("L", (8, 8), 40).save(image)
    code, out, err = command(capsys, "predict", str(old / name), str(image))
    assert code == 0, err
    assert "image.png" in out


def test_a_run_of_format_1_is_evaluated_exported_and_reported(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = old / "finished"
    code, out, err = command(capsys, "evaluate", str(run))
    assert code == 0, err
    assert f"{json.loads((run / 'result.json').read_text())['best']['test']['top1']:.1f}" in out
    code, _, err = command(capsys, "export", str(run), "--output", str(old / "new"))
    assert code == 0, err
    with safe_open(old / "new" / "model.safetensors", "pt") as file:
        assert file.metadata()["augury_format"] == str(FORMAT)
    assert json.loads((old / "new" / "config.json").read_text())["augury_format"] == FORMAT
    for folder in ("finished", "suite"):
        code, _, err = command(capsys, "report", str(old / folder))
        assert code == 0, err
        assert list((old / folder).glob("*.html"))


def test_a_recipe_of_format_1_keeps_its_meaning_and_one_of_format_2_has_todays(old: Path) -> None:
    config = read_config(read_recipe(old / "recipe.toml"))
    assert (config.format, config.schedule.warmup_prefix, config.train.ema_warmup) == (1, False, True)
    text = (old / "recipe.toml").read_text()
    (old / "new.toml").write_text("format = 2\n" + text)
    config = read_config(read_recipe(old / "new.toml"))
    assert (config.format, config.schedule.warmup_prefix, config.train.ema_warmup) == (2, True, False)
    # What it says itself, counts.
    (old / "said.toml").write_text(text.replace("[schedule]", "[schedule]\nwarmup_prefix = true"))
    assert read_config(read_recipe(old / "said.toml")).schedule.warmup_prefix is True


def test_settings_from_python_and_the_command_line_are_todays() -> None:
    config = read_config({"train": {"ema": 0.9}})
    assert (config.format, config.schedule.warmup_prefix, config.train.ema_warmup) == (FORMAT, True, False)


def test_settings_weights_and_checkpoints_are_written_with_their_number(tmp_path: Path) -> None:
    settings = {"data.images_per_class": 3, "optim": {"epochs": 1, "batch_size": 15}, "train.trackers": []}
    augury.train(settings=settings, folder=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["format"] == FORMAT
    assert describe(tmp_path / "run" / "best.safetensors").augury_format == FORMAT
    state = load_state(tmp_path / "run")
    assert state is not None
    assert state["loop"]["format"] == FORMAT


@pytest.mark.parametrize("number", ["2", 0, -1, True, 1.5, None])
def test_what_is_no_format(number: Any) -> None:
    if number is None:
        assert check_format(number, "x") == 1
        return
    with pytest.raises(UsageError, match=r"^x: `format` must be a whole number from 1 to 2, got "):
        check_format(number, "x")


def later_config(run: Path) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3, "unheard_of": 1}))


def later_checkpoint(run: Path) -> None:
    (path,) = checkpoints(run)
    state = torch.load(path, weights_only=True)
    # Its form is another one, too, and that is not what is told.
    del state["loop"]["passes"]
    state["loop"]["format"] = 3
    save_checkpoint(run, 98, state)


@pytest.mark.parametrize("later", [later_config, later_checkpoint])
def test_a_run_of_a_later_augury_is_refused(old: Path, later: Callable[[Path], None]) -> None:
    later(old / "unfinished")
    with pytest.raises(UsageError, match=r"was written in format 3 by a later augury; .* Update augury\.$"):
        augury.resume(old / "unfinished", progress=False)


def test_weights_of_a_later_augury_are_refused(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = old / "export" / "model.safetensors"
    with safe_open(path, "pt") as file:
        said = file.metadata()
    save_file(load_file(path), path, said | {"augury_format": "3"})
    Image.new("L", (8, 8), 40).save(old / "image.png")
    for arguments in (
        ("predict", str(path.parent), str(old / "image.png")),
        ("run", "--init-from", str(path), "--dataset", "digits", "--output", str(old / "started")),
    ):
        code, _, err = command(capsys, *arguments)
        assert code == 2
        assert "was written in format 3 by a later augury" in err
        assert len(err.strip().splitlines()) == 1, err
