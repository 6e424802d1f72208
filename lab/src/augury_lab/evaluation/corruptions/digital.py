"""Digital: what programs do to images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from augury_lab.evaluation.corruptions.filters import apply_matrices, box_matrix, gaussian, is_small, sample, uniform


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """(x - m) c + m, m the mean of each channel."""
    factors = (0.75, 0.5, 0.4, 0.3, 0.15) if is_small(images) else (0.4, 0.3, 0.2, 0.1, 0.05)
    means = images.mean((2, 3), keepdim=True)
    return (images - means) * factors[severity - 1] + means


def saturate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Saturation a s + b at the same hue and value (HSV); weaker at severities 1 and 2, stronger from 3 on.

    Grey pixels count as red without saturation, as in the original. Images of one channel have none and stay.
    """
    if images.shape[1] == 1:
        return images
    small = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))
    large = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))
    factor, shift = (small if is_small(images) else large)[severity - 1]
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    range_ = value - least
    saturation = range_ / value.clamp(min=1e-6)
    red = torch.tensor([0.0, 1.0, 1.0]).to(images.device, non_blocking=True)[:, None, None]
    # How far below the value each channel is at full saturation: all that hue says.
    hue = torch.where(range_ > 0, (value - images) / range_.clamp(min=1e-6), red)
    return value * (1 - (saturation * factor + shift).clamp(0, 1) * hue)


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shrunk to a share c of the side and magnified again, without smoothing (Pillow's BOX)."""
    shares = (0.95, 0.9, 0.85, 0.75, 0.65) if is_small(images) else (0.6, 0.5, 0.4, 0.3, 0.25)
    height, width = images.shape[-2:]
    rows, columns = (max(1, int(side * shares[severity - 1])) for side in (height, width))
    # Pillow keeps 8 bits in between.
    less = apply_matrices(images, box_matrix(height, rows), box_matrix(width, columns)).mul(255).round() / 255
    return apply_matrices(less, box_matrix(rows, height), box_matrix(columns, width))


def elastic_transform(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A random affine map, then every pixel moved a little along a smooth random field; lengths are shares of the side.

    (strength of the field, its smoothness, how far the affine map moves three points.)
    """
    small = ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))
    large = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
    (n, _, height, width), side = images.shape, max(images.shape[-2:])
    # The original's lengths for photographs are shares of 244 pixels on images of 224.
    scale = side if is_small(images) else side * 244 / 224
    strength, smooth, jitter = (c * scale for c in (small if is_small(images) else large)[severity - 1])
    y, x = _affine_places(n, height, width, jitter, generator)
    warped = sample(images, y, x, "mirror")
    if not strength:
        return warped
    field = uniform((n, 2, height, width), -1, 1, generator)
    moves = gaussian(field, smooth, border="symmetric", truncate=3) * strength
    rows = torch.arange(height, device=images.device, dtype=images.dtype)[:, None]
    columns = torch.arange(width, device=images.device, dtype=images.dtype)
    return sample(warped, rows + moves[:, 1], columns + moves[:, 0], "symmetric")


def _affine_places(
    count: int, height: int, width: int, jitter: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where an affine map that moves three points by up to `jitter` pixels each way takes its pixels from: y and x,
    each count x height x width."""
    reach = min(height, width) // 3
    middle_x, middle_y = width // 2, height // 2
    points = np.array(
        [
            [middle_x + reach, middle_y + reach],
            [middle_x + reach, middle_y - reach],
            [middle_x - reach, middle_y - reach],
        ]
    )
    solve = np.linalg.inv(np.concatenate([points, np.ones((3, 1))], 1))
    moves = uniform((count, 3, 2), -jitter, jitter, generator)
    # The map is the identity plus what the moves need: count x 3 x 2, its last row the translation.
    change = torch.from_numpy(solve).to(moves.device, moves.dtype, non_blocking=True) @ moves
    a, b = 1 + change[:, 0, 0], change[:, 1, 0]
    c, d = change[:, 0, 1], 1 + change[:, 1, 1]
    determinant = a * d - b * c
    a, b, c, d, tx, ty = (v[:, None, None] for v in (a, b, c, d, change[:, 2, 0], change[:, 2, 1]))
    rows = torch.arange(height, device=moves.device, dtype=moves.dtype)[:, None] - ty
    columns = torch.arange(width, device=moves.device, dtype=moves.dtype) - tx
    inverse = 1 / determinant[:, None, None]
    return (a * rows - c * columns) * inverse, (d * columns - b * rows) * inverse
