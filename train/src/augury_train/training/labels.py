"""What a training says of labels before any method does: smoothing, and the weights of the classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from augury.batch import Batch
from augury_train.config import TrainConfig


class LabelPolicy:
    """Sets a fresh batch's `smoothing` and `label_weights`, where methods find them and the criterion reads them."""

    def __init__(self, config: TrainConfig, labels: Tensor, num_classes: int, device: torch.device) -> None:
        """Weigh the classes by the training split's labels N int64."""
        self._smoothing = config.label_smoothing
        self._weights = None
        if config.class_weights is not None:
            self._weights = class_weights(config, labels, num_classes).to(device)

    def prepare(self, batch: Batch) -> None:
        """Change the batch in place, before the methods do."""
        if self._smoothing:
            batch.smoothing = torch.full_like(batch.smoothing, self._smoothing)
        if self._weights is not None:
            batch.label_weights = self._weights[batch.labels]


def class_weights(config: TrainConfig, labels: Tensor, num_classes: int) -> Tensor:
    """C float32: a weight for each class, scaled so that the mean over the training images is 1, which leaves the
    learning rate its meaning.

    `balanced`: inverse to the number of images, so that all classes weigh the same in an epoch.
    """
    counts = torch.bincount(labels, minlength=num_classes).double()
    wanted = config.class_weights
    # Every class has training images; `data.splits` refuses others.
    weights = torch.tensor(wanted, dtype=torch.float64) if isinstance(wanted, list) else 1 / counts
    return (weights * len(labels) / (weights @ counts)).float()


def scaling_note(config: TrainConfig, labels: Tensor, num_classes: int) -> str | None:
    """Return a line that says how a list of class weights is scaled, None where its weights are used as given."""
    given = config.class_weights
    if not isinstance(given, list):
        return None
    used = class_weights(config, labels, num_classes).tolist()
    if all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(given, used, strict=True)):
        return None
    shown = ", ".join(f"{weight:.4g}" for weight in used[:10]) + (", ..." if len(used) > 10 else "")
    return (
        f"train.class_weights: all are multiplied by {used[0] / given[0]:.4g}, so that their mean over the training "
        f"images is 1 and optim.lr keeps its meaning: {shown}."
    )
