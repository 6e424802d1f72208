"""ISDA as a method: options, running estimates, and the hook that hands conditional logits to the criterion."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

import augury
from augury_isda.functional import conditional_logits, update_


class ISDA(augury.Method):
    """Implicit semantic data augmentation (arXiv 1909.12220): features varied along their class's covariance.

    State: `mean` C x A, `covariance` C x A x A (C x A when diagonal) and `count` C, over all processes' rows so far.
    All float32, which every device has, and in which a count is exact up to 16.7 million rows of a class.
    """

    class Options(augury.Options):
        """The options of ISDA."""

        lambda_0: float = Field(
            0.5,
            ge=0,
            allow_inf_nan=False,
            description="strength at the end of training: the multiple of the covariance along which features vary. "
            "Paper: 0.5 (or 0.25) on CIFAR; on ImageNet, diagonal, 7.5 for ResNets and 1 for DenseNet-121",
        )
        covariance: Literal["full", "diagonal"] = Field(
            "full",
            description="what is estimated of each class: the `full` matrix (paper, CIFAR; C*A*A numbers in memory) or "
            "the `diagonal` alone (official code, ImageNet; C*A numbers)",
        )
        schedule: Literal["step", "epoch"] = Field(
            "step",
            description="how the strength grows to lambda_0: by `step`, t/T, as in the paper, or by `epoch`, "
            "(epochs completed)/(epochs), as in the official code",
        )

    contract = "2.0"
    linear_classifier = True
    sets_class_logits = True
    sharded = True
    batchwise = "its covariances take in one part after the other"
    facts = ("total_steps",)

    mean: Tensor
    covariance: Tensor
    count: Tensor

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        classes, width = spec.num_classes, spec.num_features
        assert width is not None, "a linear classifier tells its width"
        self.register_buffer("mean", torch.zeros(classes, width))
        moments = (width, width) if options.covariance == "full" else (width,)
        self.register_buffer("covariance", torch.zeros(classes, *moments))
        self.register_buffer("count", torch.zeros(classes))

    def strength(self, run: augury.Run) -> float:
        """The lambda of the step, lambda_0 times the share of the training done: 0 at first."""
        done = run.progress if self.options.schedule == "step" else min(run.epoch / run.epochs, 1.0)
        return float(self.options.lambda_0 * done)

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Update the estimates with all processes' rows, then show the criterion logits conditional on each label."""
        if not run.again:
            features, shares = (run.ranks.gather_rows(t).to(self.mean) for t in (output.features, batch.shares))
            update_(self.mean, self.covariance, self.count, features, run.ranks.gather_rows(batch.labels), shares)
        strength = self.strength(run)
        run.log("lambda", strength)
        if strength > 0:
            logits = output.logits if output.class_logits is None else output.class_logits
            weight = run.classifier.weight.to(self.mean)
            output.class_logits = conditional_logits(logits, weight, self.covariance, batch.labels, strength)
        return (yield)
