"""Mixup's mathematics: shares from a Beta distribution, and blended images. Nothing waits for an accelerator.

Letters in shapes: M rows, ch x H x W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_lambda(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw lambda ~ Beta(alpha, alpha).

    Args:
        count: how many to draw.
        alpha: concentration, > 0.
        generator: on the device of the result.

    Returns:
        `count` float64 in [0, 1].
    """
    shape, device = (2, count), generator.device
    uniform = torch.rand(shape, dtype=torch.float64, device=device, generator=generator)
    concentration = torch.full(shape, alpha + 1, dtype=torch.float64, device=device)
    log_gamma = torch._standard_gamma(concentration, generator=generator).log()
    # Beta(a, a) is x / (x + y) of two Gamma(a) variates, and Gamma(a) is Gamma(a + 1) U^(1/a). U^(1/a) underflows at
    # small a; the logarithm of the odds x / y does not.
    log_uniform = torch.log1p(-uniform)
    return torch.sigmoid(log_gamma[0] - log_gamma[1] + (log_uniform[0] - log_uniform[1]) / alpha)


def blend(images: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Return shares[:, 0] * images + shares[:, 1] * images[partners] (arXiv 1710.09412, section 2).

    Args:
        images: M x ch x H x W float.
        partners: M int64, the row that each is mixed with.
        shares: M x 2 float32.

    Returns:
        M x ch x H x W, of the type of `images`.
    """
    own, other = shares.to(images).view(-1, 2, 1, 1, 1).unbind(1)
    return images * own + images[partners] * other
