"""AgMax's mathematics: the mutual information of two views' predictions as entropies and a disagreement.

Letters in shapes: N images, S sets of predictions for them, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TINY = torch.finfo(torch.float64).eps
"""What a marginal probability is clamped to before its logarithm, as in the official code."""


def q_units(num_classes: int) -> int:
    """Width of the Q-network's hidden layer in the paper's program: 128 for C < 100, 512 for 100, 4096 for 1000.

    128 * 2^floor(log10 C) from C = 100 on, and 4 times that from C = 1000 on.
    """
    if num_classes < 100:
        return 128
    # The number of digits, since log10(1000) is 2.9999999999999996 in floating point.
    return 128 * 2 ** (len(str(num_classes)) - 1) * (4 if num_classes >= 1000 else 1)


def marginal_entropy(probabilities: Tensor, mean_over_processes: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """Entropy of each set's mean prediction over the images of all processes: H(p), p clamped to float64's epsilon.

    Args:
        probabilities: S x N x C, this process's.
        mean_over_processes: differentiable mean of an S x C tensor over processes.

    Returns:
        S entropies in nats, at most log C.
    """
    marginals = mean_over_processes(probabilities.mean(1)).clamp_min(TINY)
    return -(marginals * marginals.log()).sum(1)


def disagreement(predicted: Tensor, views: Tensor) -> Tensor:
    """Mean absolute difference between the Q-network's prediction and each view's, over views, images and classes.

    Args:
        predicted: N x C probabilities, of the Q-network.
        views: S x N x C probabilities, of each view.
    """
    return (predicted - views).abs().mean()
