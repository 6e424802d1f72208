"""Shaking: coefficients drawn for each image, other ones for the backward pass than for the forward pass.

They are drawn from torch's own generator of the device, which checkpoints hold, without asking the device for a number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def shaken(x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
    """Multiply by `forward`, and the gradient by `backward`.

    Args:
        x: M x ...
        forward, backward: of a shape that broadcasts to x.

    Returns:
        forward * x, of x's dtype.
    """
    forward, backward = forward.to(x.dtype), backward.to(x.dtype)
    # The second product is a constant for the gradient.
    return torch.addcmul(backward * x, forward - backward, x.detach())


class ShakeShake(nn.Module):
    """Mix two branches by a random share for each image (Gastaldi 2017, arXiv 1705.07485, section 1.1; "Shake-Shake-
    Image"), and by half and half in evaluation."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """a * one + (1 - a) * other, whose gradients are b and 1 - b of the incoming one; a and b are uniform on
        [0, 1). Each M x A x H x W."""
        if not self.training:
            return (one + other) / 2
        forward, backward = _uniform(2, one)
        return other + shaken(one - other, forward, backward)


class ShakeDrop(nn.Module):
    """Shake or keep a branch, drawn for each image (Yamada et al. 2019, arXiv 1802.02375)."""

    def __init__(self, keep: float) -> None:
        """Keep with probability `keep`."""
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by k + a - k * a, and the gradient by k + b - k * b: k is 1 with probability `keep`, else 0, a
        uniform on [-1, 1), b on [0, 1). In evaluation, multiply by the mean, which is `keep`. M x A x H x W."""
        if not self.training:
            return x * self.keep
        chance, forward, backward = _uniform(3, x)
        kept = chance < self.keep
        return shaken(x, (2 * forward - 1).masked_fill(kept, 1), backward.masked_fill(kept, 1))

    def extra_repr(self) -> str:
        return f"keep={self.keep:g}"


def _uniform(count: int, x: Tensor) -> tuple[Tensor, ...]:
    """So many numbers of [0, 1) for each row of x, M x 1 x 1 x 1 each; float32, since half precision is too coarse
    for a probability."""
    return torch.rand(count, x.shape[0], 1, 1, 1, device=x.device, dtype=torch.float32).unbind()
