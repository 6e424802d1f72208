"""The default criterion: the only place where labels become a loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from augury.batch import Batch, ModelOutput
from augury.hookspecs import hookimpl


def row_losses(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: Tensor, class_logits: Tensor | None = None
) -> Tensor:
    """Cross-entropy of rows with mixed, smoothed labels.

    Row loss = sum_k weights_k [ -(1 - e_k) log p[labels_k] - e_k mean_c log u_c ], with u = softmax(logits), and p the
    softmax of `class_logits[:, k]` where given, else u. So label smoothing is not part of a bound that `class_logits`
    make.

    Args:
        logits: M x C float.
        labels: M x K int64.
        weights: M x K float, summing to 1 in each row.
        smoothing: M x K float, the e_k in [0, 1].
        class_logits: M x K x C float or None.

    Returns:
        M losses.
    """
    log_u = F.log_softmax(logits, dim=1)
    if class_logits is None:
        log_p = log_u.gather(1, labels)
    else:
        log_p = F.log_softmax(class_logits, dim=2).gather(2, labels[:, :, None]).squeeze(2)
    per_label = (smoothing - 1) * log_p - smoothing * log_u.mean(1, keepdim=True)
    return (weights * per_label).sum(1)


class Criterion:
    """Core's own implementation of `compute_loss`, the last to be asked."""

    @hookimpl(trylast=True)
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        """Mean over the rows of `row_weights` times the row's loss."""
        losses = row_losses(output.logits, batch.labels, batch.weights, batch.smoothing, output.class_logits)
        return (batch.row_weights * losses).mean()
