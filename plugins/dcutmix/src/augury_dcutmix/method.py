"""DCutMix as a method: options, and the hook that mixes a batch."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

import augury
from augury_dcutmix.functional import blend, nested_boxes, paste, pixel_shares, sample_sticks, shares_of_sticks


class DCutMix(augury.Method):
    """Mix each image with K-1 others in nested boxes, or blend them (arXiv 2110.04248; IEEE Access 2023).

    Labels weigh what the pixels do. It has no state.
    """

    class Options(augury.Options):
        """The options of DCutMix."""

        alpha: float = Field(
            0.2,
            gt=0,
            allow_inf_nan=False,
            description="concentration of the Dirichlet distribution of the parts. Paper: 0.2 with K = 5 (CIFAR-100, "
            "PyramidNet-110), 1 with K = 5 (PyramidNet-200), 1/3 with K = 3 (CIFAR-10)",
        )
        k: int = Field(
            5, ge=1, le=1000, description="images that each is mixed from, itself included. Paper: 5, on CIFAR-10 3"
        )
        prob: float = Field(
            1.0,
            ge=0,
            le=1,
            description="chance that a batch is mixed at all. Paper: 1, for PyramidNet-200 on CIFAR-100 0.5",
        )
        mode: Literal["dcutmix", "dmixup"] = Field(
            "dcutmix",
            description="nested boxes (`dcutmix`) or blended whole images (`dmixup`). K = 2 with alpha = 1 is "
            "Mixup with `dmixup`; it is not CutMix, which is the method `cutmix`",
        )

    contract = "2.0"
    mixes = True
    sharded = True

    @augury.hookimpl
    def augment_batch(self, batch: augury.Batch, run: augury.Run) -> None:
        """Mix the rows of each view among themselves; one coin for all views decides whether to mix."""
        options, generator = self.options, run.generator
        if run.random.random() >= options.prob or options.k == 1:
            return
        own = torch.arange(len(batch), device=batch.device)
        others = [batch.permutation(generator) for _ in range(options.k - 1)]
        sources = torch.stack([own, *others], 1)
        sticks = sample_sticks(len(batch), options.k, options.alpha, generator)
        if options.mode == "dmixup":
            shares = shares_of_sticks(sticks).float()
            batch.mix(blend(batch.images, sources, shares), sources, shares)
        else:
            height, width = batch.images.shape[-2:]
            boxes = nested_boxes(sticks, height, width, generator)
            batch.mix(paste(batch.images, sources, boxes), sources, pixel_shares(boxes, height, width))
