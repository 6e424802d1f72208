"""AgMax's mathematics: the mutual information of two views' predictions as entropies and an agreement.

Letters in shapes: M rows (two views, view-major), C classes.
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
    """Entropy in nats of the mean prediction over the rows of all processes.

    Args:
        probabilities: R x C.
        mean_over_processes: differentiable mean of a C vector over processes.
    """
    marginal = mean_over_processes(probabilities.mean(0)).clamp_min(TINY)
    return -(marginal * marginal.log()).sum()


def disagreement(predicted: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Mean over both views, all rows and classes of |q - p|.

    Args:
        predicted: R x C, softmax of the Q-network's output.
        first, second: R x C, softmax of each view's logits.
    """
    return 0.5 * ((predicted - first).abs().mean() + (predicted - second).abs().mean())
