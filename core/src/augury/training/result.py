"""What a finished run came to."""

from __future__ import annotations

from dataclasses import dataclass

RESULT = "result.json"


@dataclass(frozen=True)
class Result:
    """What a finished run came to; accuracies in percent, None where there is no such split.

    Attributes:
        folder: where everything of it is.
        epochs: that were trained.
        chosen_on: the split that chose the best epoch: `val`, or `test` under the papers' protocol.
        weights: `raw`, or `ema` where the moving average is what was measured and exported.
        best_epoch: the epoch with the highest accuracy on that split, the first of those that share it.
        best_val_top1, last_val_top1, best_test_top1, last_test_top1: of the best and of the last epoch.
        seconds: all of it, pre-train stages and evaluation included.
        images_per_second: in training, in images (not views).
    """

    folder: str
    epochs: int
    chosen_on: str
    weights: str
    best_epoch: int
    best_val_top1: float | None
    last_val_top1: float | None
    best_test_top1: float | None
    last_test_top1: float | None
    seconds: float
    images_per_second: float

    @property
    def score(self) -> float:
        """What a comparison takes: the best epoch's test accuracy, validation accuracy where there is no test split."""
        found = self.best_val_top1 if self.best_test_top1 is None else self.best_test_top1
        assert found is not None, "one split at least has chosen"
        return found
