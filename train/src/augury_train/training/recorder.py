"""What a run writes while it trains: a row an epoch in `metrics.jsonl`, figures as PNG, and both to the trackers."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from augury.errors import UsageError
from augury.outside import RECORDED, parse_json, read_text
from augury.randomness import derive
from augury_train.config import RunConfig
from augury_train.files import append_line, folder_inside, replacing, write_text

METRICS = "metrics.jsonl"
FIGURES = "figures"


class Recorder:
    """Writes into a run folder; rows of epochs after `epochs_done` (a resumed run's lost ones) are dropped from the
    file."""

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        epochs_done: int = 0,
        note: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Open the files.

        Args:
            folder: the run's.
            config: its settings.
            epochs_done: the epochs that the checkpoint holds.
            note: is told of a tracker that fails.

        Raises:
            WriteError: a file cannot be written.
        """
        self.folder, self._path = folder, folder / METRICS
        kept = [row for row in read_rows(self._path) if row["epoch"] <= epochs_done] if self._path.exists() else []
        if len(kept) < epochs_done:
            note(f"{self._path}: rows of {epochs_done - len(kept)} epoch(s) that are done are gone; the rest is kept.")
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._trackers = Trackers(config, folder, epochs_done, note)

    def row(self, row: dict[str, Any]) -> None:
        """Append an epoch's row; it is in the file when this returns.

        Raises:
            WriteError: it cannot be written, and the file holds whole rows as before.
        """
        append_line(self._path, json.dumps(row))
        self._trackers.row({name: value for name, value in row.items() if isinstance(value, float)}, row["epoch"])

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Keep the newest figure of that name as `figures/<name>.png`, and show every one in the trackers.

        Raises:
            WriteError: it cannot be written.
        """
        *parts, last = name.split("/")
        with replacing(folder_inside(self.folder, FIGURES, *parts) / f"{last}.png") as partial:
            figure.savefig(partial, format="png")
        self._trackers.figure(name, figure, step)

    def close(self) -> None:
        """Nothing more comes."""
        self._trackers.close()


class Trackers:
    """What shows a run elsewhere while it trains. They show what the run folder holds anyway, so one that fails costs
    the run nothing but itself: it is told of once, and left out from then on."""

    def __init__(self, config: RunConfig, folder: Path, epochs_done: int, note: Callable[[str], None]) -> None:
        """Start those that `train.trackers` names; the other arguments are the recorder's."""
        self._note, self._folder = note, folder
        self._working: dict[str, GeneralTracker] = {}
        self._failed: list[GeneralTracker] = []
        self._hook_before = threading.excepthook
        threading.excepthook = self._in_thread

        def start(tracker: GeneralTracker) -> None:
            if tracker.name == "tensorboard":
                # It would make the run's folder anew, too.
                folder_inside(folder, "tensorboard")
            tracker.start()
            # TensorBoard's form of it is a run of its own in every chart.
            if tracker.name != "tensorboard":
                tracker.store_init_configuration(config.model_dump())

        for name in config.train.trackers:
            self._working[name] = _tracker(name, folder, epochs_done)
        self._each(start)

    def row(self, values: dict[str, float], step: int) -> None:
        """Show numbers."""

        def show(tracker: GeneralTracker) -> None:
            if tracker.name == "tensorboard" and not any((self._folder / "tensorboard").glob("*")):
                # Its writer would go on with a file that has no name any more.
                raise FileNotFoundError(f"{self._folder / 'tensorboard'} was removed")
            tracker.log(values, step=step)

        self._each(show)

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Show a figure."""

        def show(tracker: GeneralTracker) -> None:
            if tracker.name == "mlflow":
                tracker.log_figure(figure, f"{name}.png")
            else:
                tracker.log_images({name: _pixels(figure)[None]}, step=step, **_image_options(tracker))

        self._each(show)

    def close(self) -> None:
        """Nothing more comes."""
        self._each(lambda tracker: tracker.finish())
        for tracker in self._failed:
            # It fails once more, which was told; what matters is that its threads end.
            with contextlib.suppress(Exception):
                tracker.finish()
        self._failed.clear()
        if threading.excepthook == self._in_thread:
            threading.excepthook = self._hook_before

    def _each(self, show: Callable[[GeneralTracker], None]) -> None:
        for name, tracker in list(self._working.items()):
            try:
                show(tracker)
            except Exception as error:  # Whatever its package, its disk and its server may raise.
                del self._working[name]
                self._failed.append(tracker)
                told = " ".join(f"{type(error).__name__}: {error}".split()[:40])
                self._note(
                    f"train.trackers: {name} failed ({told}), and shows nothing from here on. The run goes on: "
                    f"{METRICS} and {FIGURES}/ hold all of it."
                )

    def _in_thread(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard writes in a thread. What fails there is raised by the next call, too, and is told then."""
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self._hook_before(failure)


def missing_trackers(names: Sequence[str]) -> list[str]:
    """A line for each tracker whose package is not installed."""
    return [
        f"train.trackers: `{name}` is not installed. Install it (pip install {name}), or leave it out."
        for name in names
        if importlib.util.find_spec(name) is None
    ]


def _tracker(name: str, folder: Path, epochs_done: int) -> GeneralTracker:
    if name == "tensorboard":
        lost = epochs_done + 1 if epochs_done else None
        return TensorBoardTracker("tensorboard", str(folder), purge_step=lost)
    if name == "wandb":
        # The same folder is the same run, so that a resumed one goes on there too.
        identity = f"{derive(0, str(folder.resolve())):x}"
        return WandBTracker("augury", dir=str(folder), name=folder.name, id=identity, resume="allow")
    return MLflowTracker("augury", run_name=folder.name)


def _image_options(tracker: GeneralTracker) -> dict[str, Any]:
    return {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}


def _pixels(figure: Any) -> Any:
    """H x W x 3 uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a kill cut short is left out.

    Raises:
        UsageError: another line is no epoch's row.
    """
    try:
        lines = read_text(path, RECORDED).splitlines()
    except ValueError as error:
        raise UsageError(f"{path}: cannot be read: {error}. Take it out of the folder, and go on.") from None
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
            if not _is_row(row):
                raise ValueError("no row")
            rows.append(row)
        except ValueError:
            if number < len(lines):
                raise UsageError(f"{path}: line {number} is no epoch's row. Take it out, and go on.") from None
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("epoch")) is not int:
        return False
    # What they are added up of, in the end.
    numbers = [row.get(key) for key in ("train_seconds", "images_per_second")]
    return all(isinstance(number, int | float) and 0 <= number < 1e15 for number in numbers)
