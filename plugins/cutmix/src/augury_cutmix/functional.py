"""CutMix's mathematics: shares from a Beta distribution, boxes, and pasting. Nothing waits for an accelerator.

Letters in shapes: M rows, ch x H x W pixels. A box is (top, bottom, left, right); bottom and right lie outside it.
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


def sample_boxes(lambdas: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Place a box for each lambda: its centre is uniform over the pixels, it reaches int(side * sqrt(1 - lambda) / 2)
    pixels to both sides, and it is clipped at the border (arXiv 1905.04899, equation 2, and its code).

    Args:
        lambdas: B float64 in [0, 1].
        height, width: of the images.
        generator: on the device of `lambdas`.

    Returns:
        B x 4 int64: top, bottom, left, right. A box may be empty.
    """
    ratio = 0.5 * (1 - lambdas).sqrt()
    edges = []
    for side in (height, width):
        centre = torch.randint(side, lambdas.shape, device=lambdas.device, generator=generator)
        reach = (ratio * side).long()
        edges += [(centre - reach).clamp_min(0), (centre + reach).clamp_max(side)]
    return torch.stack(edges, 1)


def pixel_shares(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the shares of the pixels outside and inside the boxes.

    Args:
        boxes: M x 4 int64.
        height, width: of the images.

    Returns:
        M x 2 float32, the nearest to whole numbers of pixels over H W.
    """
    top, bottom, left, right = boxes.unbind(1)
    inside, pixels = (bottom - top) * (right - left), height * width
    # In float64 first: accelerators divide by a number as they multiply by its inverse, and 49 * (1/49) is not 1.
    return (torch.stack([pixels - inside, inside], 1).double() / pixels).float()


def paste(images: Tensor, partners: Tensor, boxes: Tensor) -> Tensor:
    """Fill the box of each image with the same region of its partner.

    Args:
        images: M x ch x H x W.
        partners: M int64, rows of `images`.
        boxes: M x 4 int64.

    Returns:
        M x ch x H x W.
    """
    y, x = (torch.arange(side, device=boxes.device) for side in images.shape[-2:])
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(inside, images[partners], images)
