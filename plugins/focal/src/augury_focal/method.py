"""The focal loss as a method: options, the weights of the classes, and the criterion."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

import augury
from augury_focal.functional import class_balanced_weights, focal_losses


class Focal(augury.Method):
    """Focal loss (arXiv 1708.02002) in place of the cross-entropy, with class-balanced weights (arXiv 1901.05555).

    Its buffer `class_weights`, C float32, is computed from the class counts each time, and is not saved with a run.
    """

    class Options(augury.Options):
        """The options of the focal loss."""

        gamma: float = Field(
            2.0,
            ge=0,
            allow_inf_nan=False,
            description="how much less well-classified images count: the factor of the loss is (1 - p)^gamma, and 0 is "
            "the cross-entropy. Papers: 2 for detection, 0.5, 1 or 2 for classes of unequal size",
        )
        beta: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="how much more labels of rare classes count: a class of n images weighs "
            "(1 - beta) / (1 - beta^n); 0 weighs all classes alike, 0.9999 almost as 1/n. Paper: 0.9, 0.99, 0.999 or "
            "0.9999",
        )

    contract = "2.0"
    reads_class_logits = True
    sharded = True

    class_weights: Tensor | None

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        weights = None
        if options.beta > 0:
            assert spec.class_counts is not None, "`check` asks for them"
            weights = class_balanced_weights(spec.class_counts, options.beta)
        self.register_buffer("class_weights", weights, persistent=False)

    @classmethod
    def check(cls, options: Any, spec: augury.Spec) -> None:
        """Refuse class-balanced weights where nobody says how many images each class has."""
        if options.beta > 0 and spec.class_counts is None:
            raise augury.UsageError(
                f"focal: option `beta` needs `class_counts`, the training images of each of the {spec.num_classes} "
                "classes, which is not known. Pass class_counts=… to augury.compose, or set beta=0."
            )

    @augury.hookimpl
    def compute_loss(self, batch: augury.Batch, output: augury.ModelOutput) -> Tensor:
        """Return the focal loss of each row."""
        weights = batch.label_weights
        if self.class_weights is not None:
            weights = weights * self.class_weights[batch.labels]
        labels = batch.labels, batch.shares, batch.smoothing, weights
        return focal_losses(output.logits, *labels, self.options.gamma, output.class_logits)
