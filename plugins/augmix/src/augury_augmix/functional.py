"""The mathematics of AugMix's loss (Hendrycks et al., ICLR 2020).

Letters in shapes: V versions of each image, N images, C classes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def jensen_shannon(logits: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence of the predictions for each image.

    JS(p_1; ...; p_V) = 1/V sum_v KL(p_v || M), with M = 1/V sum_v p_v (equation 4 of arXiv 1912.02781, for V = 3). The
    logarithm of M is computed from log-probabilities, so it stays finite where all probabilities underflow, and needs
    no clamp.

    Args:
        logits: V x N x C float.

    Returns:
        N float, in [0, log V].
    """
    log_p = F.log_softmax(logits, dim=-1)
    log_mean = log_p.logsumexp(0) - math.log(len(logits))
    return (log_p.exp() * (log_p - log_mean)).sum(-1).mean(0)
