"""The default criterion: the only place where labels become a loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.hookspecs import hookimpl


def row_losses(
    logits: Tensor,
    labels: Tensor,
    shares: Tensor,
    smoothing: Tensor,
    class_logits: Tensor | None = None,
    label_weights: Tensor | None = None,
) -> Tensor:
    """Return the cross-entropy of rows with mixed, smoothed, weighted labels.

    Row loss = sum_k shares_k w_k [ -(1 - e_k) log p[labels_k] - e_k mean_c log u_c ], with w the label weights, u =
    softmax(logits), and p the softmax of `class_logits[:, k]` where given, else u. So label smoothing is not part of a
    bound that `class_logits` make. Without smoothing it is `cross_entropy(logits, soft, weight=w, reduction="none")`.

    Args:
        logits: M x C float.
        labels: M x K int64.
        shares: M x K float, summing to 1 in each row.
        smoothing: M x K float, the e_k in [0, 1].
        class_logits: M x K x C float or None.
        label_weights: M x K float, 1 everywhere when None.

    Returns:
        M losses.
    """
    log_u = F.log_softmax(logits, dim=1)
    if class_logits is None:
        log_p = log_u.gather(1, labels)
    else:
        log_p = F.log_softmax(class_logits, dim=2).gather(2, labels[:, :, None]).squeeze(2)
    per_label = (smoothing - 1) * log_p - smoothing * log_u.mean(1, keepdim=True)
    return ((shares if label_weights is None else shares * label_weights) * per_label).sum(1)


def mean_loss(batch: Batch, output: ModelOutput, rows: Tensor) -> Tensor:
    """Return the mean over rows of `row_weights` times their losses M, and hand these out as `output.row_losses`."""
    output.row_losses = rows
    return (batch.row_weights * rows).mean()


class Criterion:
    """Core's own implementation of `compute_loss`, the last to be asked."""

    @hookimpl(trylast=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        """Return the mean over the rows of `row_weights` times the row's loss."""
        rows = row_losses(
            output.logits, batch.labels, batch.shares, batch.smoothing, output.class_logits, batch.label_weights
        )
        return mean_loss(batch, output, rows)
