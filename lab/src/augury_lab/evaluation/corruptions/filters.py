"""What corruptions are made of: separable filters as matrices, sampling between pixels, and blurs along a line.

A filter along one side is a matrix that holds the border's rule too, so that any width is right on any side: an image
of 8 pixels is blurred by the same code as one of 512. Matrices and kernels are alike for all images of a batch and are
computed on the host in float64; what differs from image to image is gathered on the device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]


def inside(places: NDArray[np.int64], side: int, border: str) -> NDArray[np.int64]:
    """The pixels that stand for places outside: `edge` aaa|abc|ccc, `symmetric` cba|abc|cba, `mirror` cb|abc|ba."""
    if border == "edge" or side == 1:
        return places.clip(0, side - 1)
    if border == "symmetric":
        folded = places % (2 * side)
        return np.minimum(folded, 2 * side - 1 - folded)
    folded = places % (2 * side - 2)
    return np.minimum(folded, 2 * side - 2 - folded)


def gaussian_matrix(side: int, sigma: float, *, border: str = "edge", truncate: float = 4.0) -> Matrix:
    """A Gaussian filter along one side, cut off after `truncate` deviations: side x side, rows sum to 1."""
    radius = int(truncate * sigma + 0.5)
    steps = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2) if sigma else np.ones(1)
    matrix = np.zeros((side, side))
    rows = np.arange(side)[:, None]
    np.add.at(matrix, (np.broadcast_to(rows, (side, len(steps))), inside(rows + steps, side, border)), weights)
    return matrix / weights.sum()


def zoom_matrix(side: int, factor: float) -> Matrix:
    """Magnify the middle by `factor` >= 1, between pixels: side x side, rows sum to 1."""
    middle = (side - 1) / 2
    places = middle + (np.arange(side) - middle) / factor
    below = np.floor(places).astype(np.int64).clip(0, max(side - 2, 0))
    matrix, rows = np.zeros((side, side)), np.arange(side)
    np.add.at(matrix, (rows, below), 1 - (places - below))
    np.add.at(matrix, (rows, np.minimum(below + 1, side - 1)), places - below)
    return matrix


def box_matrix(side: int, out: int) -> Matrix:
    """Pillow's BOX resize along one side: out x side, rows sum to 1."""
    scale = side / out
    stretch = max(scale, 1.0)
    centres = (np.arange(out)[:, None] + 0.5) * scale
    x = (np.arange(side) + 0.5 - centres) / stretch
    matrix = ((x > -0.5) & (x <= 0.5)).astype(np.float64)
    return matrix / matrix.sum(1, keepdims=True)


def apply_matrices(images: Tensor, rows: Matrix, columns: Matrix) -> Tensor:
    """Filter images N x ch x H x W along both sides: `rows` h x H, `columns` w x W -> N x ch x h x w."""
    left = torch.from_numpy(rows).to(images.device, images.dtype, non_blocking=True)
    right = torch.from_numpy(columns).to(images.device, images.dtype, non_blocking=True)
    return left @ images @ right.mT


def gaussian(images: Tensor, sigma: float, *, border: str = "edge", truncate: float = 4.0) -> Tensor:
    """Blur images N x ch x H x W by a Gaussian of `sigma` pixels."""
    rows, columns = (gaussian_matrix(side, sigma, border=border, truncate=truncate) for side in images.shape[-2:])
    return apply_matrices(images, rows, columns)


def zoom(images: Tensor, factor: float) -> Tensor:
    """Magnify images N x ch x H x W about their middle by `factor` >= 1; the size stays."""
    rows, columns = (zoom_matrix(side, factor) for side in images.shape[-2:])
    return apply_matrices(images, rows, columns)


def correlate(images: Tensor, kernel: Matrix) -> Tensor:
    """Correlate images N x ch x H x W with a kernel of odd sides, borders mirrored (OpenCV's filter2D)."""
    reach = len(kernel) // 2
    padded = images
    for dim in (2, 3):
        places = inside(np.arange(-reach, images.shape[dim] + reach), images.shape[dim], "mirror")
        padded = padded.index_select(dim, torch.from_numpy(places).to(images.device, non_blocking=True))
    weights = torch.from_numpy(kernel).to(images.device, images.dtype, non_blocking=True)
    planes = torch.nn.functional.conv2d(padded.flatten(0, 1)[:, None], weights[None, None])
    return planes.view_as(images)


def disk(radius: float, alias: float) -> Matrix:
    """The kernel of a lens out of focus: a disk, its border softened by a small Gaussian of deviation `alias`."""
    # OpenCV's Gaussian has as many weights as it is told, whatever its deviation.
    around = 1 if radius <= 8 else 2
    weights = np.exp(-0.5 * (np.arange(-around, around + 1) / alias) ** 2)
    reach = math.ceil(radius)
    steps = np.arange(-reach, reach + 1)
    whole = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    # Each pixel of the disk becomes a small Gaussian: what is moved stays inside the padding.
    soft = sum(
        w * v * np.pad(whole, ((i, 2 * around - i), (j, 2 * around - j)))
        for i, w in enumerate(weights)
        for j, v in enumerate(weights)
    )
    made: Matrix = soft / np.sum(soft)
    return made


def blur_along(images: Tensor, radius: int, sigma: float, angles: Tensor) -> Tensor:
    """Smear each image along a line of its own, to one side, as ImageMagick's MotionBlur does.

    Tap i of 2 * radius + 1, of weight exp(-i^2 / (2 sigma^2)), is the pixel i steps along the line, rounded to whole
    pixels; borders are repeated.

    Args:
        images: N x ch x H x W.
        radius, sigma: in pixels.
        angles: N, in degrees.
    """
    (height, width), taps = images.shape[-2:], 2 * radius + 1
    weights = np.exp(-0.5 * (np.arange(taps) / sigma) ** 2)
    weights /= weights.sum()
    turn = torch.deg2rad(angles)
    along_x, along_y = torch.cos(turn)[:, None], torch.sin(turn)[:, None]
    x, y = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    levels, made = images.flatten(2), torch.zeros_like(images)
    for tap, weight in enumerate(weights.tolist()):
        if weight < 1e-6:
            break  # the rest is less than a thousandth of a grey level
        columns = (x + torch.ceil(tap * along_x - 0.5).long()).clamp_(0, width - 1)
        rows = (y + torch.ceil(tap * along_y - 0.5).long()).clamp_(0, height - 1)
        places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
        taken = levels.gather(2, places[:, None].expand(-1, levels.shape[1], -1))
        made.add_(taken.view_as(images), alpha=weight)
    return made


def sample(images: Tensor, y: Tensor, x: Tensor, border: str) -> Tensor:
    """Look images up between their pixels, bilinearly.

    Args:
        images: N x ch x H x W.
        y, x: N x h x w, places in pixels; (0, 0) is the middle of the first.
        border: `symmetric` or `mirror`, as for `inside`.

    Returns:
        N x ch x h x w.
    """
    (n, channels, height, width), levels = images.shape, images.flatten(2)
    top, left = y.floor(), x.floor()
    down, right = (y - top)[:, None], (x - left)[:, None]
    rows = [_fold(top + step, height, border) * width for step in (0, 1)]
    columns = [_fold(left + step, width, border) for step in (0, 1)]

    def at(row: Tensor, column: Tensor) -> Tensor:
        places = (row + column).flatten(1)[:, None].expand(-1, channels, -1)
        return levels.gather(2, places).view(n, channels, *y.shape[1:])

    upper = at(rows[0], columns[0]) * (1 - right) + at(rows[0], columns[1]) * right
    lower = at(rows[1], columns[0]) * (1 - right) + at(rows[1], columns[1]) * right
    return upper * (1 - down) + lower * down


def _fold(places: Tensor, side: int, border: str) -> Tensor:
    """`inside` for places on the device, int64."""
    period, last = (2 * side, 2 * side - 1) if border == "symmetric" else (2 * side - 2, 2 * side - 2)
    folded = places.long().remainder(period)
    return torch.minimum(folded, last - folded)


def plasma(count: int, height: int, width: int, decay: float, generator: torch.Generator) -> Tensor:
    """Clouds by the diamond-square algorithm, each map scaled to [0, 1] before it is cut to size.

    Args:
        count: how many maps.
        height, width: in pixels.
        decay: how much less each finer octave moves.
        generator: what is drawn.

    Returns:
        count x 1 x height x width.
    """
    size = 1 << (max(height, width, 2) - 1).bit_length()
    device = generator.device
    field = torch.zeros(count, size, size, device=device)
    step, wobble = size, 100.0

    def moved(total: Tensor) -> Tensor:
        drawn = torch.rand(total.shape, generator=generator, device=device)
        return total / 4 + wobble**2 * (2 * drawn - 1)

    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + corners.roll(-1, 1)
        field[:, half::step, half::step] = moved(pairs + pairs.roll(-1, 2))
        middles, corners = field[:, half::step, half::step], field[:, ::step, ::step]
        field[:, ::step, half::step] = moved(middles + middles.roll(1, 1) + corners + corners.roll(-1, 2))
        field[:, half::step, ::step] = moved(middles + middles.roll(1, 2) + corners + corners.roll(-1, 1))
        step, wobble = half, wobble / decay
    low, high = field.amin((1, 2), keepdim=True), field.amax((1, 2), keepdim=True)
    return ((field - low) / (high - low))[:, None, :height, :width]


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniforms in [low, high) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def is_small(images: Tensor) -> bool:
    """Whether the strengths of CIFAR-10-C are meant (sides up to 64), else those of ImageNet-C."""
    return max(images.shape[-2:]) <= 64
