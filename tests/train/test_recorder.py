"""What a run writes while it trains, read back by others' readers."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.train.limits import at_most
from tests.train.small_runs import interrupted, small

from augury.errors import RunError, UsageError
from augury_train.config import RunConfig
from augury_train.training import plan as planning
from augury_train.training import recorder as recording
from augury_train.training.recorder import Recorder, missing_trackers, read_rows
from augury_train.training.trainer import resume, train

ROW = {
    "epoch": 1,
    "step": 4,
    "lr": 0.1,
    "train_loss": 2.0,
    "train_top1": None,
    "train_seconds": 0.5,
    "images_per_second": 200.0,
    "val_top1": 10.0,
}
SHOWN = {key: value for key, value in ROW.items() if key not in ("epoch", "step", "train_top1")}
"""What trackers show of it."""


def picture() -> Any:
    """A figure of 200 x 100 pixels, red."""
    from matplotlib.figure import Figure

    return Figure(figsize=(2, 1), dpi=100, facecolor="red")


def events(folder: Path) -> Any:
    """A run's TensorBoard events, purged as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    read.Reload()
    return read


class Tracker:
    """Stands for Weights & Biases or MLflow, and writes down what it is told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.name = "fake"
        self.made, self.told = (args, kwargs), list[Any]()

    def start(self) -> None:
        self.told.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.told.append(("config", values))

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.told.append(("row", values, step))

    def log_images(self, values: dict[str, Any], step: int | None = None) -> None:
        self.told.append(("images", values, step))

    def log_figure(self, figure: Any, artifact_file: str) -> None:
        self.told.append(("figure", artifact_file))

    def finish(self) -> None:
        self.told.append("finish")


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tracker]]:
    """The trackers that recorders make, by name."""
    made: dict[str, list[Tracker]] = {"wandb": [], "mlflow": []}

    def maker(kind: str) -> Callable[..., Tracker]:
        def make(*args: Any, **kwargs: Any) -> Tracker:
            tracker = Tracker(*args, **kwargs)
            tracker.name = kind
            made[kind].append(tracker)
            return tracker

        return make

    monkeypatch.setattr(recording, "WandBTracker", maker("wandb"))
    monkeypatch.setattr(recording, "MLflowTracker", maker("mlflow"))
    monkeypatch.setattr(planning, "missing_trackers", lambda names: [])
    return made


def recorder(folder: Path, *trackers: str, epochs_done: int = 0) -> Recorder:
    return Recorder(folder, small(train={"trackers": list(trackers)}), epochs_done, note=lambda line: None)


def test_rows_are_in_the_file_at_once(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.row(ROW)
    assert read_rows(tmp_path / "metrics.jsonl") == [ROW]
    made.row(ROW | {"epoch": 2})
    assert [json.loads(line)["epoch"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    made.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"], "no trackers, no folder of theirs"


def test_a_line_cut_short_and_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    for epoch in (1, 2, 3):
        made.row(ROW | {"epoch": epoch})
    made.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    again = recorder(tmp_path, epochs_done=2)
    again.row(ROW | {"epoch": 3, "val_top1": 99.0})
    again.close()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["epoch"], row["val_top1"]) for row in rows] == [(1, 10.0), (2, 10.0), (3, 99.0)]


@pytest.mark.parametrize("key", ["epoch", "train_seconds", "images_per_second"])
def test_a_row_without_what_is_added_up_in_the_end_is_refused(tmp_path: Path, key: str) -> None:
    lines = [json.dumps({name: value for name, value in ROW.items() if name != key}), json.dumps(ROW)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"metrics\.jsonl: line 1 is no epoch's row\. Take it out, and go on\.$"):
        read_rows(tmp_path / "metrics.jsonl")


def test_figures_are_pictures(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.figure("method/losses", picture(), 0)
    made.close()
    image = Image.open(tmp_path / "figures" / "method" / "losses.png").convert("RGB")
    assert image.size == (200, 100)
    assert image.getpixel((100, 50)) == (255, 0, 0)


def test_tensorboard_reads_scalars_and_figures(tmp_path: Path) -> None:
    made = recorder(tmp_path, "tensorboard")
    made.figure("batch", picture(), 0)
    made.row(ROW)
    made.row(ROW | {"epoch": 2, "val_top1": 20.0})
    made.close()
    read = events(tmp_path)
    assert set(read.Tags()["scalars"]) == set(SHOWN), "what is not measured is not a point"
    assert [(event.step, event.value) for event in read.Scalars("val_top1")] == [(1, 10.0), (2, 20.0)]
    (image,) = read.Images("batch")
    assert (image.width, image.height, image.step) == (200, 100, 0)


@pytest.mark.slow
def test_tensorboard_forgets_the_epochs_that_a_kill_has_lost(tmp_path: Path) -> None:
    for done, epochs, top1 in ((0, (1, 2, 3), 10.0), (1, (2,), 20.0)):
        made = recorder(tmp_path, "tensorboard", epochs_done=done)
        for epoch in epochs:
            made.row(ROW | {"epoch": epoch, "val_top1": top1})
        made.close()
        # Files of events are read in the order of their names, which begin with the second they were made in.
        time.sleep(1.1)
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("val_top1")] == [(1, 10.0), (2, 20.0)]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_other_trackers_get_settings_rows_and_figures(
    name: str, tmp_path: Path, tracked: dict[str, list[Tracker]]
) -> None:
    (tmp_path / "run").mkdir()
    made = recorder(tmp_path / "run", name)
    made.figure("batch", picture(), 0)
    made.row(ROW)
    made.close()
    (tracker,) = tracked[name]
    start, (kind, settings), figure, row, finish = tracker.told
    assert (start, kind, finish) == ("start", "config", "finish")
    assert RunConfig.model_validate(settings).train.trackers == [name]
    assert row == ("row", SHOWN, 1)
    if name == "mlflow":
        assert figure == ("figure", "batch.png")
        assert tracker.made == (("augury",), {"run_name": "run"})
    else:
        _, values, step = figure
        assert step == 0
        (pixels,) = values["batch"]
        assert pixels.shape == (100, 200, 3)
        assert np.array_equal(pixels[50, 100], [255, 0, 0])


def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(tmp_path: Path, tracked: dict[str, list[Tracker]]) -> None:
    for folder, done in (("one", 0), ("one", 2), ("two", 0)):
        (tmp_path / folder).mkdir(exist_ok=True)
        recorder(tmp_path / folder, "wandb", epochs_done=done).close()
    first, again, other = (tracker.made[1] for tracker in tracked["wandb"])
    assert first == again
    assert first["resume"] == "allow"
    assert first["id"] != other["id"]


def test_tensorboard_that_cannot_write_is_left_out_and_told_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes: list[str] = []
    made = Recorder(tmp_path, small(train={"trackers": ["tensorboard"]}), note=notes.append)
    made.figure("batch", picture(), 0)
    made.row(ROW)
    (file,) = (tmp_path / "tensorboard").iterdir()
    with at_most(file.stat().st_size + 20):
        for epoch in (2, 3):
            made.row(ROW | {"epoch": epoch})
    made.figure("batch", picture(), 3)
    made.close()
    (note,) = notes
    assert note.startswith("train.trackers: tensorboard failed (OSError: [Errno 27] File too large")
    assert [row["epoch"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert (tmp_path / "figures" / "batch.png").exists()
    assert capfd.readouterr().err == "", "neither does its thread say anything"
    assert threading.excepthook.__module__ != recording.__name__


def test_tensorboard_that_cannot_begin_is_left_out_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = []
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "tensorboard").write_text("a file where the folder should be")
    (tmp_path / "two").mkdir()
    for name, size in (("one", 10**9), ("two", 1)):
        with at_most(size):
            made = Recorder(tmp_path / name, small(train={"trackers": ["tensorboard"]}), note=notes.append)
        made.row(ROW)
        made.close()
        assert read_rows(tmp_path / name / "metrics.jsonl") == [ROW]
    assert ["File exists" in note for note in notes] == [True, False]
    assert "File too large" in notes[1]
    assert capfd.readouterr().err == ""


def test_a_tracker_that_fails_leaves_the_others_at_work(tmp_path: Path, tracked: dict[str, list[Tracker]]) -> None:
    notes: list[str] = []
    made = Recorder(tmp_path, small(train={"trackers": ["wandb", "mlflow"]}), note=notes.append)
    tracked["wandb"][0].log = None  # type: ignore[assignment, method-assign]
    for epoch in (1, 2):
        made.row(ROW | {"epoch": epoch})
    made.close()
    (note,) = notes
    assert note.startswith("train.trackers: wandb failed (TypeError: ")
    assert tracked["wandb"][0].told[-1] == "finish"
    assert [entry[2] for entry in tracked["mlflow"][0].told if entry[0] == "row"] == [1, 2]


def test_a_row_that_does_not_fit_is_not_there_by_halves(tmp_path: Path) -> None:
    made = recorder(tmp_path)
    made.row(ROW)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    with at_most(size + 30), pytest.raises(RunError, match="metrics.jsonl: cannot be written: File too large"):
        made.row(ROW | {"epoch": 2})
    made.close()
    assert (tmp_path / "metrics.jsonl").read_text() == json.dumps(ROW) + "\n"


def test_a_folder_that_is_gone_is_not_made_anew(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    made = recorder(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match="run is no longer there"):
        made.figure("method/losses", picture(), 0)
    with pytest.raises(RunError, match="run is no longer there"):
        made.row(ROW)
    made.close()
    assert not (tmp_path / "run").exists()


def test_missing_trackers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording.importlib.util, "find_spec", lambda name: None if name == "mlflow" else object())
    assert missing_trackers(["tensorboard", "mlflow"]) == [
        "train.trackers: `mlflow` is not installed. Install it (pip install mlflow), or leave it out."
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's own
def test_a_run_shows_its_rows_and_figures_once_also_when_resumed(
    tmp_path: Path, tracked: dict[str, list[Tracker]]
) -> None:
    config = small("resmooth", optim={"epochs": 3}, train={"trackers": ["tensorboard", "wandb"]})
    folder = tmp_path / "run"
    interrupted(config, folder, 6)
    resume(folder)
    read = events(folder)
    assert [event.step for event in read.Scalars("val_top1")] == [1, 2, 3]
    assert {"batch", "resmooth/losses"} <= set(read.Tags()["images"])
    # In wandb, what comes with an earlier step than what came before is refused.
    for tracker in tracked["wandb"]:
        steps = [entry[2] for entry in tracker.told if entry[0] in ("row", "images")]
        assert steps == sorted(steps)
    assert [entry[2] for tracker in tracked["wandb"] for entry in tracker.told if entry[0] == "row"] == [1, 2, 3]


def test_without_trackers_a_run_writes_no_folder_of_theirs(tmp_path: Path) -> None:
    train(small(optim={"epochs": 1}, train={"trackers": []}), tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        ".lock",
        "best.safetensors",
        "checkpoints",
        "config.json",
        "data.json",
        "environment.json",
        "figures",
        "last.safetensors",
        "metrics.jsonl",
        "result.json",
    ]
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    assert torch.load(newest, weights_only=True)["loop"]["epoch"] == 1
