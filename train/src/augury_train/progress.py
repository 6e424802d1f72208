"""Progress bars for Python users, in a terminal or a notebook."""

from __future__ import annotations

import sys
from typing import Any

from augury.errors import UsageError
from augury_train.training.watch import Reporter, Silent


def reporter_of(progress: bool | Reporter) -> Reporter:
    """Bars, nobody, or who is given."""
    if isinstance(progress, bool):
        return Bars() if progress else Silent()
    if not hasattr(progress, "note"):
        raise UsageError(f"progress must be True, False or a reporter, got {progress!r}.")
    return progress


class Bars:
    """A reporter (`augury_train.training.watch.Reporter`) with a bar for each training."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._said: set[str] = set()
        self._bar: Any = None

    def named(self, name: str) -> Bars:
        """Another one, for one run of several."""
        other = Bars(name)
        other._said = self._said
        return other

    def note(self, line: str) -> None:
        """Say it once, however many runs it is true of."""
        if line not in self._said:
            self._said.add(line)
            _tqdm().write(line, file=sys.stderr)

    def read(self, done: int, total: int) -> None:
        """Images are decoded before there is a bar."""

    def start(self, what: str, total_steps: int, done: int) -> None:
        """Show a bar."""
        label = self._name if self._name and what == "training" else " ".join(filter(None, [self._name, what]))
        self._bar = _tqdm()(desc=label, total=total_steps, initial=done, unit="step", leave=not self._name)

    def step(self, images: int) -> None:
        """Advance it."""
        self._bar.update()

    def epoch(self, row: dict[str, Any]) -> None:
        """Show the epoch's loss, and its accuracy on the split that chooses."""
        shown = {key: f"{row[key]:.3g}" for key in ("train_loss", "val_top1", "test_top1") if row.get(key) is not None}
        self._bar.set_postfix(shown, refresh=False)

    def stop(self) -> None:
        """It is over."""
        self._bar.close()


def _tqdm() -> Any:
    """tqdm as fits: a widget in a notebook."""
    from tqdm.auto import tqdm

    return tqdm
