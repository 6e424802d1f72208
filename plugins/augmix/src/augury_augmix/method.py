"""AugMix as a method: its option, the rows that the criterion counts, and the consistency term."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor

import augury
from augury_augmix.functional import jensen_shannon


class AugMix(augury.Method):
    """Make the predictions for an image and two augmented versions of it alike (Hendrycks et al., ICLR 2020).

    loss = criterion(view 0) + weight * mean JS(p_0; p_1; p_2), where the pipeline `base` makes view 0 and `augmented`
    the other two. The images are mixed by the pipeline's word `augmix`. The method has no state.
    """

    class Options(augury.Options):
        """The options of AugMix."""

        weight: float = Field(
            12.0,
            ge=0,
            allow_inf_nan=False,
            description="weight of the Jensen-Shannon divergence. Paper: 12 on CIFAR and ImageNet",
        )

    contract = "2.0"
    views = 3
    view_pipelines = ("base", "augmented", "augmented")
    views_alike = True
    sharded = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch) -> None:
        """Let the criterion count view 0 alone: the mean over all rows becomes the mean over the images."""
        clean = torch.arange(len(batch), device=batch.device) < len(batch) // batch.views
        batch.row_weights = batch.row_weights * clean.to(batch.row_weights) * batch.views

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Add the divergence of the first three views' predictions, the mean over the images."""
        loss = yield
        # A batch has more views where another method asks for them.
        divergence = jensen_shannon(output.logits.unflatten(0, (batch.views, -1))[: self.views]).mean()
        run.log("divergence", divergence)
        weight: float = self.options.weight
        return loss + weight * divergence
