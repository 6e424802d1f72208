"""AgMax's mathematics: the mutual information of two views' predictions, and the simpler agreements beside it.

Letters in shapes: N images, S sets of predictions for them, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TINY = torch.finfo(torch.float64).eps
"""What a marginal probability is clamped to before its logarithm, as in the official code."""


def q_units(num_classes: int) -> int:
    """Width of the Q-network's hidden layer in the paper's program: 128 for C < 100, 512 for 100, 4096 for 1000.

    128 * 2^floor(log10 C) from C = 100 on, and 4 times that from C = 1000 on.
    """
    if num_classes < 100:
        return 128
    # The number of digits, which no rounding of a logarithm can miss.
    return 128 * 2 ** (len(str(num_classes)) - 1) * (4 if num_classes >= 1000 else 1)


def normal_init_(layer: nn.Linear | nn.Conv2d, std: float, generator: torch.Generator | None = None) -> None:
    """Start a layer with weights from normal(0, std) and zero biases, in place; drawn on the host, so that every
    device and memory layout gets the same.

    Args:
        layer: any with a weight, on any device.
        std: standard deviation of the weights.
        generator: one of the host; torch's own when None.
    """
    with torch.no_grad():
        layer.weight.copy_(torch.normal(0.0, std, layer.weight.shape, generator=generator, device="cpu"))
        if layer.bias is not None:
            layer.bias.zero_()


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


def squared_error(logits: Tensor, other: Tensor) -> Tensor:
    """Mean squared error of two views' logits, over images and classes (`mse`).

    Args:
        logits: N x C, of the first view.
        other: N x C, of the second.
    """
    return F.mse_loss(logits, other)


def divergence(logits: Tensor, other: Tensor) -> Tensor:
    """KL(p' || p) = sum_c p'_c (log p'_c - log p_c), the mean over images (`kl`).

    Args:
        logits: N x C, of the first view, whose softmax is p.
        other: N x C, of the second, whose softmax is p'.
    """
    return F.kl_div(logits.log_softmax(1), other.log_softmax(1), reduction="batchmean", log_target=True)


def cross_entropy(logits: Tensor, other: Tensor) -> Tensor:
    """-mean(p log p') over images **and** classes, which is 1/C of the usual cross-entropy (`ce`).

    Args:
        logits: N x C, of the first view, whose softmax is p.
        other: N x C, of the second, whose softmax is p'.
    """
    return -(logits.softmax(1) * other.log_softmax(1)).mean()


WITHOUT_Q: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": squared_error,
    "kl": divergence,
    "ce": cross_entropy,
}
"""The agreements that need no Q-network, by the name of the option."""
