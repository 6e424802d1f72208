"""CutMix as a method: options, and the hook that mixes a batch."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

import augury
from augury_cutmix.functional import paste, pixel_shares, sample_boxes, sample_lambda


class CutMix(augury.Method):
    """Fill a box of each image with the same region of another one (arXiv 1905.04899).

    Labels weigh what the pixels do. It has no state.
    """

    class Options(augury.Options):
        """The options of CutMix."""

        alpha: float = Field(
            1.0,
            gt=0,
            allow_inf_nan=False,
            description="concentration of Beta(alpha, alpha), from which the share outside the box is drawn before the "
            "box is clipped at the border. Paper: 1",
        )
        prob: float = Field(
            1.0, ge=0, le=1, description="chance that a batch is mixed. Authors' code: 0.5 on CIFAR, 1 on ImageNet"
        )
        per: Literal["batch", "image"] = Field(
            "batch",
            description="what has a box of its own: each view of a `batch` (the authors' code), or each `image`",
        )

    contract = "2.0"
    mixes = True
    sharded = True
    batchwise = 'per = "batch" draws one box for each part'

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        """Mix the rows of each view among themselves; one coin for all views decides whether to mix."""
        options = self.options
        height, width = batch.images.shape[-2:]
        if run.random.random() >= options.prob:
            return
        if options.per == "image":
            lambdas = sample_lambda(len(batch), options.alpha, run.generator)
            boxes = sample_boxes(lambdas, height, width, run.generator)
        else:
            # All processes draw alike on the host, so that a batch has one box on any number of processes.
            host = torch.Generator().manual_seed(run.random.getrandbits(63))
            of_views = sample_boxes(sample_lambda(batch.views, options.alpha, host), height, width, host)
            boxes = of_views.to(batch.device, non_blocking=True).repeat_interleave(len(batch) // batch.views, 0)
        partners = batch.permutation(run.generator)
        sources = torch.stack([torch.arange(len(batch), device=batch.device), partners], 1)
        batch.mix(paste(batch.images, partners, boxes), sources, pixel_shares(boxes, height, width))
