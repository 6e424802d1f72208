"""Geometry of 8-bit images, many at once: each image's pixels are moved by a matrix of its own.

A matrix is inverse: it leads from (x, y, 1) in the result to (x, y) in the image, where pixel (0, 0) has its centre at
(0.5, 0.5). Matrices are made on the host, in numpy, which is quicker there with few numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIXED = 65536
"""PIL's affine transform counts in 1/65536 of a pixel."""

Doubles = NDArray[np.float64]


def affine(images: Tensor, matrices: Doubles) -> Tensor:
    """Move pixels: nearest neighbour, black where there was none (PIL's `Image.transform` with AFFINE).

    Args:
        images: N x ch x H x W uint8, sides below 4096.
        matrices: N x 2 x 3.

    Returns:
        the same shape and dtype.
    """
    (height, width), device = images.shape[-2:], images.device
    fixed = torch.from_numpy(_fixed(matrices)).to(device, non_blocking=True)
    along_x, along_y, start = fixed[..., None, None].unbind(2)
    x = torch.arange(width, dtype=torch.int32, device=device)
    y = torch.arange(height, dtype=torch.int32, device=device)[:, None]
    from_x, from_y = (along_x * x + (along_y * y + start)).bitwise_right_shift_(16).unbind(1)
    near_x, near_y = from_x.clamp(0, width - 1), from_y.clamp(0, height - 1)
    places = torch.add(near_x, near_y, alpha=width).long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
    # In place, where numbers stay 32 bits wide: a comparison that makes truth values takes three times as long.
    inside = near_x.eq_(from_x).mul_(near_y.eq_(from_y)).to(torch.uint8)
    return images.flatten(2).gather(2, places).view(images.shape).mul_(inside[:, None])


def affine_rows(images: Tensor, matrices: Doubles) -> Tensor:
    """The same for matrices (1, a, b; 0, 1, c): these keep each row in one piece, and copying pieces is much faster."""
    n, channels, height, width = images.shape
    fixed, y = _fixed(matrices), np.arange(height, dtype=np.int32)
    from_x = (fixed[:, 0, 1, None] * y + fixed[:, 0, 2, None]) >> 16
    from_y = y + (fixed[:, 1, 2, None] >> 16)
    near_y = from_y.clip(0, height - 1)
    # Before and behind each row are as many black pixels as it has.
    rows = images.new_zeros(width + 2 * images.numel())
    rows[width:].view(n, channels, height, 2 * width)[..., :width] = images
    black = np.where(near_y == from_y, from_x.clip(-width, width), -width)
    start = torch.from_numpy(near_y * (2 * width) + width + black).to(images.device, non_blocking=True)
    image = torch.arange(0, rows.numel() - width, 2 * width * height, device=images.device).view(n, channels, 1)
    return rows.unfold(0, width, 1).index_select(0, (image + start[:, None]).flatten()).view(images.shape)


def _fixed(matrices: Doubles) -> NDArray[np.int32]:
    """The matrices in fixed-point numbers, for the centres of pixels."""
    centred = matrices.copy()
    centred[:, :, 2] += (matrices[:, :, 0] + matrices[:, :, 1]) * 0.5
    return np.floor(centred * FIXED + 0.5).astype(np.int32)


def affine_bilinear(images: Tensor, matrices: Doubles) -> Tensor:
    """The same for any matrices with bilinear interpolation, against black outside, as torchvision does it on
    tensors."""
    (height, width), device = images.shape[-2:], images.device
    there = torch.from_numpy(matrices).float().to(device, non_blocking=True)
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    along_x, along_y, start = there[:, :, :, None, None].unbind(2)
    from_x, from_y = (along_x * x + along_y * y + start).unbind(1)
    grid = torch.stack([from_x * (2 / width) - 1, from_y * (2 / height) - 1], 3)
    moved = torch.nn.functional.grid_sample(images.float(), grid, align_corners=False)
    return moved.round_().to(torch.uint8)


def _shear_x(matrices: Doubles, slopes: Doubles, size: tuple[int, int]) -> None:
    matrices[:, 0, 1] = slopes


def _shear_y(matrices: Doubles, slopes: Doubles, size: tuple[int, int]) -> None:
    matrices[:, 1, 0] = slopes


def _translate_x(matrices: Doubles, pixels: Doubles, size: tuple[int, int]) -> None:
    matrices[:, 0, 2] = -np.trunc(pixels)


def _translate_y(matrices: Doubles, pixels: Doubles, size: tuple[int, int]) -> None:
    matrices[:, 1, 2] = -np.trunc(pixels)


def _rotate(matrices: Doubles, degrees: Doubles, size: tuple[int, int]) -> None:
    cos, sin = np.cos(np.deg2rad(-degrees)), np.sin(np.deg2rad(-degrees))
    y, x = size[0] / 2, size[1] / 2
    rows = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    matrices[:] = np.stack(rows, 1).reshape(-1, 2, 3)


Move = Callable[[Doubles, Doubles, tuple[int, int]], Any]
"""Changes identities into the matrices of an op: of magnitudes N, for images of that height and width."""

OF_ROWS: dict[str, Move] = {"ShearX": _shear_x, "TranslateX": _translate_x, "TranslateY": _translate_y}
"""By torchvision's names, those that `affine_rows` can do."""

OF_PIXELS: dict[str, Move] = {"ShearY": _shear_y, "Rotate": _rotate}
"""The others."""


def matrices_of(magnitudes: Doubles, spans: Mapping[str, slice], size: tuple[int, int]) -> Doubles:
    """The matrices of images, each of the op in whose span it lies.

    Args:
        magnitudes: N.
        spans: of N, by op; the identity for images in none of them.
        size: (height, width) of the images.

    Returns:
        N x 2 x 3.
    """
    matrices = np.tile(np.eye(2, 3), (len(magnitudes), 1, 1))
    for name, span in spans.items():
        (OF_ROWS.get(name) or OF_PIXELS[name])(matrices[span], magnitudes[span], size)
    return matrices
