"""What a run writes while it trains: a row an epoch in `metrics.jsonl`, figures as PNG, and both to the trackers."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from augury.config import RunConfig
from augury.randomness import derive

METRICS = "metrics.jsonl"


class Recorder:
    """Writes into a run folder; rows of epochs after `epochs_done` (a resumed run's lost ones) are dropped from the
    file."""

    def __init__(self, folder: Path, config: RunConfig, epochs_done: int = 0) -> None:
        self.folder = folder
        path = folder / METRICS
        if path.exists():
            kept = [row for row in read_rows(path) if row["epoch"] <= epochs_done]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._rows = path.open("a", encoding="utf-8")
        self._trackers = [_tracker(name, folder, epochs_done) for name in config.train.trackers]
        for tracker in self._trackers:
            tracker.start()
            # TensorBoard's form of it is a run of its own in every chart.
            if tracker.name != "tensorboard":
                tracker.store_init_configuration(config.model_dump())

    def row(self, row: dict[str, Any]) -> None:
        """Append an epoch's row; it is in the file when this returns."""
        self._rows.write(json.dumps(row) + "\n")
        self._rows.flush()
        values = {name: value for name, value in row.items() if isinstance(value, float)}
        for tracker in self._trackers:
            tracker.log(values, step=row["epoch"])

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Keep the newest figure of that name as `figures/<name>.png`, and show every one in the trackers."""
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        for tracker in self._trackers:
            if tracker.name == "mlflow":
                tracker.log_figure(figure, f"{name}.png")
            else:
                tracker.log_images({name: _pixels(figure)[None]}, step=step, **_image_options(tracker))

    def close(self) -> None:
        """Nothing more comes."""
        self._rows.close()
        for tracker in self._trackers:
            tracker.finish()


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
    """The rows of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
