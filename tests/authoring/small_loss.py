"""Small-loss selection (co-teaching's rule, arXiv 1804.06872) as somebody writes it from the pages for authors.

It is the last of five methods that were tried against the contract. The other four are packages by now, and a setting:
augmix, distill, supcon, and optim.sam.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

import augury


class SmallLoss(augury.Method):
    """Train on the share of each batch's rows whose loss is smallest: labels that are wrong have large ones."""

    class Options(augury.Options):
        """The options of the selection."""

        keep: float = Field(0.7, gt=0, le=1, description="share of the rows that are kept at the end")
        until: float = Field(0.25, gt=0, le=1, description="share of the training in which it falls from 1 to that")

    contract = "2.0"
    facts = ("total_steps", "num_images")

    seen: Tensor

    def __init__(self, options: Any, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        assert spec.num_images is not None, "declared in facts"
        # How often each training image was kept, by its position in the training split.
        self.register_buffer("seen", torch.zeros(spec.num_images, dtype=torch.int64))

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Weigh the rows of small loss alone, so that what other methods add stays as it is."""
        loss = yield
        assert output.row_losses is not None
        losses = run.ranks.gather_rows(output.row_losses)
        share = 1 - (1 - self.options.keep) * min(run.progress / self.options.until, 1.0)
        count = max(1, round(share * len(losses)))
        limit = losses.kthvalue(count).values
        kept = (output.row_losses.detach() <= limit).to(output.row_losses)
        if not run.again:
            indices, chosen = run.ranks.gather_rows(batch.indices), run.ranks.gather_rows(kept.long())
            self.seen.index_add_(0, indices, chosen)
        weights = kept * len(losses) / run.ranks.sum(kept.sum())
        return output.replace_rows(loss, weights * output.row_losses, batch)
