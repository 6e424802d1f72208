"""SupCon as a method: options, the projection head, the queue, and the term that it adds to the loss."""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import augury
from augury_supcon.functional import push, supcon_losses


class SupCon(augury.Method):
    """Draw projections of one class together and push those of others away (arXiv 2004.11362; NeurIPS 2020).

    loss + weight * mean over the rows of row_weights * L_out. The contrasts are the rows of all processes in two views,
    and a queue of earlier ones (as in MoCo, arXiv 1911.05722).

    State: `head`, the projection head, trained with the network and never exported; `queue` Q x D and `queue_targets`
    Q x C, the last normalised projections and their class distributions, the oldest first, alike in all processes.
    """

    class Options(augury.Options):
        """The options of SupCon."""

        weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the term beside the cross-entropy")
        temperature: float = Field(
            0.1,
            gt=0,
            allow_inf_nan=False,
            description="divides the similarities before the softmax: a small one makes the nearest rows count most. "
            "Paper: 0.1; official code: 0.07",
        )
        dim: int = Field(128, ge=1, le=65536, description="dimensions of a projection. Paper: 128")
        queue: int = Field(
            0,
            ge=0,
            le=65536,
            description="earlier projections that are kept as further contrasts, two for each image; 0: none",
        )

    contract = "2.0"
    views = 2
    # Positives are chosen by class, so each view may be mixed with images of its own.
    views_alike = False
    facts = ("num_features",)
    batchwise = "its contrasts are the rows of a part"

    queue: Tensor
    queue_targets: Tensor

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        width = spec.num_features
        assert width is not None, "declared in facts"
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, options.dim))
        self.register_buffer("queue", torch.zeros(options.queue, options.dim))
        self.register_buffer("queue_targets", torch.zeros(options.queue, spec.num_classes))
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._step = -1

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Add the contrastive term to what the criterion makes of the rows."""
        loss = yield
        features, soft = (t.to(self.queue) for t in (output.features, batch.soft_targets(run.num_classes)))
        anchors = F.normalize(self.head(_by_image(features, batch.views)), dim=1)
        targets = _by_image(soft, batch.views)
        # An image's weight is the mean of its rows', since another method may weigh one view for all of them.
        weights = batch.row_weights.unflatten(0, (batch.views, -1)).mean(0).repeat_interleave(2)
        rows = run.ranks.gather_rows(anchors, differentiable=True)
        row_targets = run.ranks.gather_rows(targets)
        own = torch.arange(len(anchors), device=anchors.device) + run.ranks.rank * len(anchors)
        contrasts, contrast_targets = torch.cat([rows, self.queue]), torch.cat([row_targets, self.queue_targets])
        losses = supcon_losses(anchors, targets, contrasts, contrast_targets, own, self.options.temperature)
        term = (weights * losses).mean()
        run.log("supcon", term)
        if self.options.queue and not run.again:
            # Parts of a step come one after the other; those of a step that was skipped are forgotten.
            before = self._seen if run.step == self._step else []
            self._seen, self._step = [*before, (rows.detach(), row_targets)], run.step
        return loss + float(self.options.weight) * term

    @augury.hookimpl
    def post_step(self) -> None:
        """Put the step's rows into the queue; one that is not finite takes a place that does not count."""
        # Not before the step is over: its loss may be computed again, with the same queue.
        for rows, targets in self._seen:
            finite = rows.isfinite().all(1, keepdim=True)
            push(self.queue, torch.where(finite, rows, 0))
            push(self.queue_targets, torch.where(finite, targets, 0))
        self._seen = []


def _by_image(rows: Tensor, views: int) -> Tensor:
    """The first two views' rows, both of an image together: 2N x ... of M x ..., so that the rows of all processes come
    in the order that one process would have them in."""
    return rows.unflatten(0, (views, -1))[:2].transpose(0, 1).flatten(0, 1)
