"""Mixup as a method: options, and the hook that mixes a batch."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

import augury
from augury_mixup.functional import blend, sample_lambda


class Mixup(augury.Method):
    """Blend each image with another one of the batch, and their labels alike (arXiv 1710.09412).

    It has no state.
    """

    class Options(augury.Options):
        """The options of Mixup."""

        alpha: float = Field(
            1.0,
            gt=0,
            allow_inf_nan=False,
            description="concentration of the shares, which are drawn from Beta(alpha, alpha): small ones leave one "
            "image dominant, large ones give both a half. Paper: 1 on CIFAR-10 and CIFAR-100, 0.1 to 0.4 on ImageNet",
        )
        prob: float = Field(1.0, ge=0, le=1, description="chance that a batch is mixed at all. Paper: 1")
        per: Literal["batch", "image"] = Field(
            "batch",
            description="what has a share of its own: each view of a `batch` (the authors' code), or each `image`",
        )

    contract = "2.0"
    mixes = True
    sharded = True
    batchwise = 'per = "batch" draws one lambda for each part'

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        """Mix the rows of each view among themselves; one coin for all views decides whether to mix."""
        options = self.options
        if run.random.random() >= options.prob:
            return
        if options.per == "image":
            own = sample_lambda(len(batch), options.alpha, run.generator)
        else:
            # All processes draw alike on the host, so that a batch has one lambda on any number of processes.
            host = torch.Generator().manual_seed(run.random.getrandbits(63))
            of_views = sample_lambda(batch.views, options.alpha, host).to(batch.device, non_blocking=True)
            own = of_views.repeat_interleave(len(batch) // batch.views)
        shares = torch.stack([own, 1 - own], 1).float()
        partners = batch.permutation(run.generator)
        sources = torch.stack([torch.arange(len(batch), device=batch.device), partners], 1)
        batch.mix(blend(batch.images, partners, shares), sources, shares)
