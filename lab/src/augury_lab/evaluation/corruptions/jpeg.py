"""JPEG: colours at half resolution, 8 x 8 cosine transforms, rounded by the standard tables."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from augury_lab.evaluation.corruptions.filters import is_small

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""How coarsely each frequency of the brightness is rounded at quality 50 (ITU-T T.81, table K.1)."""
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
"""The same for the colours (table K.2)."""


def jpeg_compression(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """What JPEG of quality c leaves: the arithmetic of a JPEG file, without the file (its coding loses nothing)."""
    qualities = (80, 65, 58, 50, 40) if is_small(images) else (25, 18, 15, 10, 7)
    quality = qualities[severity - 1]
    levels = images * 255
    if images.shape[1] == 1:
        return _coded(levels, LUMA, quality) / 255
    height, width = images.shape[-2:]
    red, green, blue = pad(levels, (0, width % 2, 0, height % 2), mode="replicate").split(1, 1)
    luma = (0.299 * red + 0.587 * green + 0.114 * blue).round()
    colours = torch.cat([(blue - luma) / 1.772, (red - luma) / 1.402], 1).round() + 128
    luma = _coded(luma, LUMA, quality)
    colours = _coded(avg_pool2d(colours, 2).round(), CHROMA, quality) - 128
    # libjpeg's smooth upsampling: 3/4 of the nearer and 1/4 of the farther value, both ways.
    blue_less, red_less = interpolate(colours, scale_factor=2, mode="bilinear", align_corners=False).split(1, 1)
    green_less = -0.344136 * blue_less - 0.714136 * red_less
    made = torch.cat([luma + 1.402 * red_less, luma + green_less, luma + 1.772 * blue_less], 1)
    return made[..., :height, :width] / 255


def _coded(levels: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Round the cosine transform of each 8 x 8 block: levels N x ch x H x W in [0, 255] -> the same."""
    n, channels, height, width = levels.shape
    whole = pad(levels, (0, -width % 8, 0, -height % 8), mode="replicate") - 128
    down, across = whole.shape[-2] // 8, whole.shape[-1] // 8
    blocks = whole.view(n, channels, down, 8, across, 8).transpose(3, 4)
    cosines = torch.from_numpy(_cosines()).to(levels.device, levels.dtype, non_blocking=True)
    steps = torch.from_numpy(_steps(table, quality)).to(levels.device, levels.dtype, non_blocking=True)
    rounded = (cosines @ blocks @ cosines.T / steps).round() * steps
    made = (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(whole.shape)
    return (made + 128).round().clamp(0, 255)[..., :height, :width]


def _cosines() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The orthonormal cosine transform (DCT-II) of 8 values."""
    frequencies, places = np.arange(8)[:, None], np.arange(8)
    matrix = np.cos((2 * places + 1) * frequencies * np.pi / 16) / 2
    matrix[0] /= np.sqrt(2)
    return matrix


def _steps(table: tuple[tuple[int, ...], ...], quality: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The table at a quality, as libjpeg scales it."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((np.array(table) * scale + 50) // 100).clip(1, 255).astype(np.float64)
