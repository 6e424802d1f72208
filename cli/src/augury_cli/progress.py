"""Live progress on the terminal; plain lines where there is none."""

from __future__ import annotations

import copy
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class _Rate(ProgressColumn):
    """Images a second, of the last few steps."""

    def render(self, task: Task) -> Text:
        speed = task.speed
        per_step = task.fields.get("images", 0)
        return Text(f"{speed * per_step:,.0f} img/s" if speed and per_step else "", style="cyan")


_MEASURED = {
    "val_top1": "val top-1",
    "val_ema_top1": "of the average",
    "test_top1": "test top-1",
    "test_ema_top1": "of the average",
}


def _train_top1(row: dict[str, Any]) -> str:
    """What could be measured of it: mixed rows have no one class."""
    if row["train_top1"] is None:
        return "train top-1 - (all mixed)"
    share = row["train_top1_share"]
    return f"train top-1 {row['train_top1']:.1f}" + (f" (of {share:.0%} unmixed)" if share < 1 else "")


class Terminal:
    """A reporter (`augury_train.training.loop.Reporter`): a bar for the training at work, a line for each epoch if
    asked."""

    def __init__(self, *, epochs: bool) -> None:
        """Report to stderr.

        Args:
            epochs: print a line for each epoch; else one for each training.
        """
        self._console = Console(stderr=True)
        self._epochs = epochs
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn()]
        live = self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not live)
        self._said: set[str] = set()
        self._name = ""
        self._begin()

    def _begin(self) -> None:
        self._task: Any = None
        self._reading: Any = None
        self._last: dict[str, Any] = {}
        self._what = ""

    def named(self, name: str) -> Terminal:
        """Another one, for one run of several, on the same terminal."""
        other = copy.copy(self)
        other._name = name
        other._begin()
        return other

    def __enter__(self) -> Terminal:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, line: str) -> None:
        """Say it once, however many runs it is true of."""
        if line not in self._said:
            self._said.add(line)
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def read(self, done: int, total: int) -> None:
        """Show how many images are decoded."""
        if self._reading is None:
            self._reading = self._progress.add_task("reading images", total=total)
        self._progress.update(self._reading, completed=done)

    def start(self, what: str, total_steps: int, done: int) -> None:
        """Show a bar for a training."""
        if self._reading is not None:
            self._progress.remove_task(self._reading)
            self._reading = None
        if self._name:
            what = self._name if what == "training" else f"{self._name} ({what})"
        self._what, self._last = what, {}
        self._task = self._progress.add_task(what, total=total_steps, completed=done)

    def step(self, images: int) -> None:
        """Advance it."""
        self._progress.update(self._task, advance=1, images=images)

    def epoch(self, row: dict[str, Any]) -> None:
        """Print the row, or keep it for the end."""
        self._last = row
        if self._epochs:
            # The training itself needs no name, what comes before it does.
            before = "" if self._what == "training" else f"{self._what}, "
            self._print(f"{before}epoch {row['epoch']:>3}", row)

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.remove_task(self._task)
        if not self._epochs and self._last:
            self._print(self._what, self._last)

    def _print(self, title: str, row: dict[str, Any]) -> None:
        parts = [title, f"train loss {row['train_loss']:.3f}"]
        parts.append(_train_top1(row))
        for key, title in _MEASURED.items():
            if key in row:
                parts.append(f"{title} {row[key]:.1f}")
        parts.append(f"{row['images_per_second']:,.0f} img/s")
        self._console.print("  ".join(parts), highlight=False, soft_wrap=True)
