"""The supervised contrastive loss, equation 2 of arXiv 2004.11362, for labels that may be mixed.

Letters in shapes: M anchors, J contrasts, D dimensions of a projection, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def supcon_losses(
    anchors: Tensor, targets: Tensor, contrasts: Tensor, contrast_targets: Tensor, own: Tensor, temperature: float
) -> Tensor:
    """Compute the supervised contrastive loss of each anchor, L_out of equation 2.

    L_i = -1 / sum_j p_ij * sum_j p_ij log( exp(z_i.z_j / t) / sum_a exp(z_i.z_a / t) ), j and a over all contrasts but
    the anchor itself, and p_ij = targets_i . targets_j the probability that both are of one class. With targets that
    are one class each, p_ij is 1 for the positives and 0 for all others, and this is the paper's equation.

    Args:
        anchors: M x D float, normalised.
        targets: M x C float, the class distribution of each anchor.
        contrasts: J x D float, normalised, the anchors among them.
        contrast_targets: J x C float; all 0 for a contrast that does not count.
        own: M int64, the position of each anchor among the contrasts.
        temperature: t > 0.

    Returns:
        M losses; 0 for an anchor without any positive.
    """
    similarities = anchors @ contrasts.t() / temperature
    itself = torch.zeros_like(similarities, dtype=torch.bool).scatter_(1, own[:, None], True)
    left_out = itself | (contrast_targets.sum(1) == 0)
    # Not minus infinity: an anchor without any contrast would have gradients that are not numbers.
    denominators = similarities.masked_fill(left_out, torch.finfo(similarities.dtype).min).logsumexp(1)
    shared = (targets @ contrast_targets.t()).masked_fill(itself, 0)
    total = shared.sum(1)
    positives = (shared * similarities).sum(1) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, denominators - positives, 0)


def push(queue: Tensor, rows: Tensor) -> None:
    """Append rows R x ... to a queue Q x ... in place, the newest last, and drop as many of the oldest."""
    queue.copy_(torch.cat([queue, rows.to(queue)])[len(rows) :])
