"""What is summed over the steps of an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from augury.batch import Batch
from augury.distributed import Ranks
from augury.errors import AuguryError


@dataclass
class Tally:
    """Sums over the rows of an epoch, on the device; nothing is read from it before the epoch ends.

    Attributes:
        loss: float64, the sum of the batches' mean losses times their rows.
        correct: float64, unmixed rows whose own class has the largest logit.
        batches: those of which methods left rows.
        rows, unmixed_rows, images: of those batches, in this process.
        seconds: spent on the steps.
        lr: learning rate of the last step that changed the weights.
        skipped: steps left out because they were not finite; None where none would be.
    """

    loss: Tensor
    correct: Tensor
    batches: int = 0
    rows: int = 0
    unmixed_rows: int = 0
    images: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    skipped: int | None = None

    @classmethod
    def empty(cls, device: torch.device) -> Tally:
        return cls(
            torch.zeros((), dtype=torch.float64, device=device), torch.zeros((), dtype=torch.float64, device=device)
        )

    def add(self, loss: Tensor, logits: Tensor, batch: Batch) -> None:
        self.loss.add_(loss.detach().double(), alpha=len(batch))
        self.batches += 1
        self.rows += len(batch)
        self.images += len(batch) // batch.views
        if not batch.mixed:
            self.correct += (logits.argmax(1) == batch.labels[:, 0]).sum()
            self.unmixed_rows += len(batch)

    def row(self, ranks: Ranks) -> dict[str, Any]:
        """Return the epoch's numbers.

        `lr` is the learning rate of the last step, `train_loss` the mean over all rows that methods left in the epoch.
        `train_top1` is measured on the rows that no method mixed, against their own class, None where all were mixed;
        `train_top1_share` is the share of the rows that it was measured on.

        Raises:
            AuguryError: methods left nothing of any batch, or all steps were skipped.
        """
        if not self.batches and self.skipped:
            raise AuguryError(
                f"training: all {self.skipped} steps with images of this epoch were skipped (train.on_nan=skip), since "
                "their loss or gradient was not finite. Lower optim.lr, to a third say, raise "
                "schedule.warmup_epochs, or see where it begins with --on-nan stop."
            )
        if not self.batches:
            raise AuguryError(
                "training: the methods left no image of any batch of this epoch, so there is nothing to train on. "
                "Raise optim.batch_size, or leave out the option that chooses among a batch's images."
            )
        top1 = 100 * float(ranks.mean(self.correct)) / self.unmixed_rows if self.unmixed_rows else None
        rate = self.images * ranks.size / self.seconds if self.seconds else 0.0
        return {
            "lr": self.lr,
            "train_loss": float(ranks.mean(self.loss)) / self.rows,
            "train_top1": top1,
            "train_top1_share": self.unmixed_rows / self.rows,
            "train_seconds": self.seconds,
            "images_per_second": rate,
            **({} if self.skipped is None else {"skipped_steps": self.skipped}),
        }


def from_format_1(values: Mapping[str, Any], lr: float) -> dict[str, Any]:
    """Return the fields of a tally in a checkpoint of format 1, which summed mean losses over batches and kept no rate,
    as those of today's."""
    rows_per_batch = values["rows"] / max(1, values["batches"])
    return {**values, "loss": values["loss"] * rows_per_batch, "lr": lr}
