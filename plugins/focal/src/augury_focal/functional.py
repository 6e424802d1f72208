"""The mathematics of the focal loss and of class-balanced weights.

Letters in shapes: M rows, K labels a row is mixed from, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def focal_losses(
    logits: Tensor,
    labels: Tensor,
    shares: Tensor,
    smoothing: Tensor,
    label_weights: Tensor,
    gamma: float,
    class_logits: Tensor | None = None,
) -> Tensor:
    """Compute the focal loss (arXiv 1708.02002, eq. 4, of a softmax) of rows with mixed, smoothed, weighted labels.

    Row loss = sum_k shares_k w_k [ -(1 - e_k) (1 - p_k)^gamma log p_k - e_k mean_c log u_c ], with w the label weights,
    e the smoothing, u = softmax(logits), and p_k the probability of labels_k in the softmax of `class_logits[:, k]`
    where given, else in u. gamma = 0 is core's cross-entropy, exactly.

    Args:
        logits: M x C float.
        labels: M x K int64.
        shares: M x K float, summing to 1 in each row.
        smoothing: M x K float in [0, 1].
        label_weights: M x K float.
        gamma: >= 0.
        class_logits: M x K x C float or None.

    Returns:
        M losses.
    """
    log_u = F.log_softmax(logits, dim=1)
    if class_logits is None:
        log_p = log_u.gather(1, labels)
    else:
        log_p = F.log_softmax(class_logits, dim=2).gather(2, labels[:, :, None]).squeeze(2)
    # Where p rounds to 1, the gradient of (1 - p)^gamma would be infinite for gamma < 1; the clamp makes it 0.
    modulation = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny).pow(gamma)
    per_label = (smoothing - 1) * modulation * log_p - smoothing * log_u.mean(1, keepdim=True)
    return (shares * label_weights * per_label).sum(1)


def class_balanced_weights(counts: Sequence[int], beta: float) -> Tensor:
    """Compute (1 - beta) / (1 - beta^n_c) for each class, scaled to a sum of C (arXiv 1901.05555, section 4).

    A class without images has weight 0, and the others' sum is their number: no training label is of it.

    Args:
        counts: training images of each class, C numbers >= 0, at least one of them > 0.
        beta: in [0, 1): 0 gives weights of 1, towards 1 they become inverse class counts.

    Returns:
        C float32.
    """
    n = torch.tensor(counts, dtype=torch.float64)
    # 1 - beta^n, which loses its digits where beta is close to 1, without that loss; log(0) is -inf.
    log_beta = math.log(beta) if beta > 0 else -math.inf
    weights = torch.where(n > 0, (1 - beta) / -torch.expm1(n.clamp_min(1) * log_beta), 0.0)
    return (weights * (n > 0).sum() / weights.sum()).float()
