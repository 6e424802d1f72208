"""DCutMix's mathematics: sticks, nested boxes, and what is pasted into them. No loop runs over images or pixels, and
nothing waits for an accelerator.

Letters in shapes: M rows, K images a row is mixed from, ch x H x W pixels. A box is (top, bottom, left, right), bottom
and right being the first row and column outside. Source 0 of a row is the row itself, and box 0 the whole image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_sticks(rows: int, k: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Break sticks: v_j ~ Beta(alpha, (K-1-j) alpha) for j = 0 ... K-2, so the parts are Dirichlet(alpha, ..., alpha).

    Sampled directly (arXiv 2110.04248 divides Dirichlet parts, which gives v > 1 in float32 where parts are small).

    Args:
        rows: M.
        k: K >= 1.
        alpha: concentration, > 0.
        generator: on the device of the result.

    Returns:
        M x (K-1) float64 in [0, 1]: the share of what is left that is broken off each time.
    """
    later = torch.arange(k - 1, 0, -1, dtype=torch.float64, device=generator.device)
    uniform = torch.rand(2, rows, k - 1, dtype=torch.float64, device=generator.device, generator=generator)
    own = torch._standard_gamma((alpha * torch.ones_like(later) + 1).expand(rows, -1), generator=generator)
    rest = torch._standard_gamma((alpha * later + 1).expand(rows, -1), generator=generator)
    # Beta(a, b) is the odds of two gamma variates, and Gamma(a) is Gamma(a+1) U^(1/a), which underflows at small a. Its
    # logarithm does not; and with 1/alpha taken out, the odds are 0 or infinite, never undefined, at any alpha.
    log_own, log_rest = torch.log1p(-uniform).unbind(0)
    return torch.sigmoid(own.log() - rest.log() + (log_own - log_rest / later) / alpha)


def shares_of_sticks(sticks: Tensor) -> Tensor:
    """The parts that sticks break into: M x (K-1) -> M x K, summing to 1."""
    left = torch.cat([sticks.new_ones(len(sticks), 1), (1 - sticks).cumprod(1)], 1)
    return torch.cat([left[:, :-1] * sticks, left[:, -1:]], 1)


def nested_boxes(sticks: Tensor, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Place boxes inside each other: the sides of box j+1 are round(side of box j * sqrt(1 - v_j)), and each side's
    offset is uniform over all that keep it inside box j.

    Args:
        sticks: M x (K-1) float64.
        height, width: of the images.
        generator: on the device of `sticks`.

    Returns:
        M x K x 4 int64: top, bottom, left, right. A box may be empty.
    """
    rows, inner = sticks.shape
    corner = torch.zeros(rows, 2, dtype=torch.int64, device=sticks.device)
    size = torch.stack([torch.full_like(corner[:, 0], side) for side in (height, width)], 1)
    places = torch.rand(inner, rows, 2, dtype=torch.float64, device=sticks.device, generator=generator)
    boxes = [torch.stack([corner, corner + size], 2)]
    for stick, place in zip(sticks.unbind(1), places, strict=True):
        smaller = (size * (1 - stick).sqrt()[:, None]).round().long()
        room = size - smaller
        # The product can round up to the number of offsets itself.
        corner = corner + torch.minimum((place * (room + 1)).long(), room)
        size = smaller
        boxes.append(torch.stack([corner, corner + size], 2))
    return torch.stack(boxes, 1).flatten(2)


def pixel_shares(boxes: Tensor, height: int, width: int) -> Tensor:
    """The share of the pixels that each source keeps.

    Args:
        boxes: M x K x 4 int64, nested.
        height, width: of the images.

    Returns:
        M x K float32, the nearest to whole numbers of pixels over H W.
    """
    top, bottom, left, right = boxes.unbind(2)
    area = (bottom - top) * (right - left)
    kept = area - torch.cat([area[:, 1:], torch.zeros_like(area[:, :1])], 1)
    # In float64 first: accelerators divide by a number as they multiply by its inverse, and 49 * (1/49) is not 1.
    return (kept.double() / (height * width)).float()


def pixel_owners(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which of its row's sources each pixel comes from: the innermost box that holds it.

    Args:
        boxes: M x K x 4 int64, nested.
        height, width: of the images.

    Returns:
        M x H x W int64 in [0, K).
    """
    y, x = (torch.arange(side, device=boxes.device) for side in (height, width))
    top, bottom, left, right = boxes[:, 1:, :, None].unbind(2)
    # Boxes are nested, so a row of pixels is within the first so many of them, and so is a column.
    by_row = ((top <= y) & (y < bottom)).sum(1)
    by_column = ((left <= x) & (x < right)).sum(1)
    return torch.minimum(by_row[:, :, None], by_column[:, None, :])


def paste(images: Tensor, sources: Tensor, boxes: Tensor) -> Tensor:
    """Fill each box with the same region of its source image.

    Args:
        images: M x ch x H x W.
        sources: M x K int64, rows of `images`; the first is the row itself.
        boxes: M x K x 4 int64, nested.

    Returns:
        M x ch x H x W.
    """
    owners = pixel_owners(boxes, *images.shape[-2:])
    origins = sources.gather(1, owners.flatten(1)).view_as(owners)
    return images.gather(0, origins[:, None].expand_as(images))


def blend(images: Tensor, sources: Tensor, shares: Tensor) -> Tensor:
    """Weighted sums of whole images (the paper's DMixup).

    Args:
        images: M x ch x H x W.
        sources: M x K int64, rows of `images`.
        shares: M x K, summing to 1.

    Returns:
        M x ch x H x W.
    """
    mixed = torch.zeros_like(images)
    for source, share in zip(sources.unbind(1), shares.to(images).unbind(1), strict=True):
        mixed.addcmul_(images[source], share[:, None, None, None])
    return mixed
