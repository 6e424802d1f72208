"""What a run writes while it trains: a row an epoch in `metrics.jsonl`, TensorBoard events, figures as PNG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"


class Recorder:
    """Writes into a run folder; rows of epochs after `epochs_done` (a resumed run's lost ones) are dropped from the
    file."""

    def __init__(self, folder: Path, epochs_done: int = 0) -> None:
        self.folder = folder
        path = folder / METRICS
        if path.exists():
            kept = [row for row in read_rows(path) if row["epoch"] <= epochs_done]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        self._rows = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1 if epochs_done else None)

    def row(self, row: dict[str, Any]) -> None:
        """Append an epoch's row; it is in the file when this returns."""
        self._rows.write(json.dumps(row) + "\n")
        self._rows.flush()
        for name, value in row.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, row["epoch"])

    def figure(self, name: str, figure: Any, step: int) -> None:
        """Keep the newest figure of that name as `figures/<name>.png`, and every one in TensorBoard."""
        path = self.folder / "figures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        self._board.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        self._rows.close()
        self._board.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
