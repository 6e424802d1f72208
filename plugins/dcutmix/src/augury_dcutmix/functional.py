"""DCutMix's mathematics: sticks, nested boxes, and what is pasted into them. No loop runs over images.

Letters in shapes: M rows, K images a row is mixed from, ch x H x W pixels. A box is (top, bottom, left, right), the far
sides outside.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_sticks(rows: int, k: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Break a stick: v_j ~ Beta(alpha, (k-1-j) alpha) for j = 0 ... k-2, so that the parts are
    Dirichlet(alpha, ..., alpha).

    Args:
        rows: M.
        k: images a row is mixed from.
        alpha: concentration, > 0.
        generator: on the device of the result.

    Returns:
        M x (k-1) float64 in [0, 1]: the share that is broken off what is left each time.
    """
    own = torch.full((rows, k - 1), alpha, dtype=torch.float64, device=generator.device)
    rest = own * torch.arange(k - 1, 0, -1, device=generator.device)
    return torch.sigmoid(_log_gamma_variate(own, generator) - _log_gamma_variate(rest, generator))


def _log_gamma_variate(shape: Tensor, generator: torch.Generator) -> Tensor:
    """Logarithms of Gamma(shape) variates.

    Gamma(a) is Gamma(a+1) U^(1/a), which underflows at small a; its logarithm does not.
    """
    uniform = torch.rand(shape.shape, dtype=shape.dtype, device=shape.device, generator=generator)
    larger = torch._standard_gamma(shape + 1, generator=generator)
    return larger.log() + torch.log1p(-uniform) / shape


def shares_of_sticks(sticks: Tensor) -> Tensor:
    """The parts that sticks break into: M x (K-1) -> M x K, summing to 1."""
    left = torch.cat([torch.ones_like(sticks[:, :1]), (1 - sticks).cumprod(1)], 1)
    return torch.cat([left[:, :-1] * sticks, left[:, -1:]], 1)


def nested_boxes(sticks: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes inside each other: box 0 is the image, box j+1 lies at random in box j with sides round(side sqrt(1-v_j)).

    Args:
        sticks: M x (K-1).
        height, width: of the images.
        generator: on the device of `sticks`.

    Returns:
        M x K x 4 int64: top, bottom, left, right.
    """
    rows, inner = sticks.shape
    device = sticks.device
    corner = torch.zeros(rows, 2, dtype=torch.int64, device=device)
    size = torch.tensor([height, width], device=device).expand(rows, 2)
    places = torch.rand(inner, rows, 2, dtype=torch.float64, device=device, generator=generator)
    boxes = [torch.stack([corner, corner + size], 2)]
    for stick, place in zip(sticks.unbind(1), places, strict=True):
        smaller = (size * (1 - stick).sqrt()[:, None]).round().long()
        # The product can round up to the number of places itself.
        room = size - smaller
        corner = corner + torch.minimum((place * (room + 1)).long(), room)
        size = smaller
        boxes.append(torch.stack([corner, corner + size], 2))
    return torch.stack(boxes, 1).flatten(2)


def pixel_shares(boxes: Tensor, height: int, width: int) -> Tensor:
    """The share of the pixels that each image keeps: M x K float32, whole numbers of pixels over H W."""
    top, bottom, left, right = boxes.unbind(2)
    area = (bottom - top) * (right - left)
    kept = area - torch.cat([area[:, 1:], torch.zeros_like(area[:, :1])], 1)
    return kept.float() / (height * width)


def paste(images: Tensor, sources: Tensor, boxes: Tensor) -> Tensor:
    """Fill each box with the same region of its source image.

    Args:
        images: M x ch x H x W.
        sources: M x K int64, rows of `images`; the first is the row itself.
        boxes: M x K x 4, nested.
    """
    height, width = images.shape[-2:]
    mixed = images
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    for source, box in zip(sources.unbind(1)[1:], boxes.unbind(1)[1:], strict=True):
        top, bottom, left, right = box[:, :, None].unbind(1)
        inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :]
        mixed = torch.where(inside[:, None], images[source], mixed)
    return mixed


def blend(images: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
    """Weighted sums of whole images.

    Args:
        images: M x ch x H x W.
        sources: M x K int64, rows of `images`.
        shares: M x K, summing to 1.
    """
    mixed = torch.zeros_like(images)
    for source, share in zip(sources.unbind(1), shares.to(images).unbind(1), strict=True):
        mixed.addcmul_(images[source], share[:, None, None, None])
    return mixed
