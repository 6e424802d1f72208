"""Negative augmentations: words that change an image so much that it no longer looks like one of the data set
(arXiv 2205.12606). They change every image; `rotate90`, `blur` and `sobel` usually stand before crop and flip,
`vertical_flip` behind them, `jigsaw` last."""

from __future__ import annotations

from itertools import permutations
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from augury_train.data.transforms import Frame, Single, Uniforms, Word, pick

TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


class Rotate90(Word):
    """Turn by 90, 180 or 270 degrees, one as likely as the other (`rotate90`)."""

    draws: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in (1, 2, 3)])
        rows = torch.arange(len(images), device=images.device)
        return turned.index_select(0, rows + len(images) * pick(uniforms.device[:, 0], 3))

    def single(self, frame: Frame) -> Single:
        return _turn

    def fault(self, frame: Frame) -> str | None:
        height, width = frame.size
        return None if height == width else f"must have squares to turn, got {height} x {width} pixels. Leave it out."


def _turn(image: Image.Image) -> Image.Image:
    return image.transpose(TURNS[int(torch.randint(3, ()))])


class VerticalFlip(Word):
    """Mirror every image top to bottom (`vertical_flip`)."""

    draws: ClassVar[int] = 0

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        return images.flip(-2)

    def single(self, frame: Frame) -> Single:
        return ImageOps.flip


ORDERS = list(permutations(range(4)))[1:]
"""All orders of four patches but the one they have."""


class Jigsaw(Word):
    """Cut into 2 x 2 patches and put them together in another order, each of the other 23 as likely (`jigsaw`).

    Images that are not yet of the run's size may have odd sides: there the last row or column stays where it is.
    """

    draws: ClassVar[int] = 1
    last: ClassVar[bool] = True

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        orders = torch.tensor(ORDERS)[pick(uniforms.host[:, 0], len(ORDERS))].to(images.device, non_blocking=True)
        height, width = images.shape[-2] // 2, images.shape[-1] // 2
        even = images[..., : 2 * height, : 2 * width]
        if even.shape == images.shape:
            return _put_together(images, orders)
        made = images.clone()
        made[..., : 2 * height, : 2 * width] = _put_together(even, orders)
        return made

    def single(self, frame: Frame) -> Single:
        return _single_jigsaw

    def fault(self, frame: Frame) -> str | None:
        height, width = frame.size
        if height % 2 == width % 2 == 0:
            return None
        return f"must cut both sides in halves, got {height} x {width} pixels. Set data.image_size to an even number."


def _put_together(images: Tensor, orders: Tensor) -> Tensor:
    """To each place the patch that `orders`, N x 4, has there; halves of rows of pixels are copied whole."""
    (n, channels, height, width), device = images.shape, images.device
    # Where in each channel, counted in halves of rows, a place's patch begins.
    first = (orders // 2 * height + orders % 2).view(n, 1, 2, 1, 2)
    inside = torch.arange(height // 2, device=device).view(-1, 1) * 2
    channel = torch.arange(n * channels, device=device).view(n, channels, 1, 1, 1) * (2 * height)
    halves = images.reshape(-1, width // 2)
    return halves.index_select(0, (channel + first + inside).flatten()).view(images.shape)


def _single_jigsaw(image: Image.Image) -> Image.Image:
    width, height = image.width // 2, image.height // 2
    corners = [(x, y) for y in (0, height) for x in (0, width)]
    made = image.copy()
    for (x, y), patch in zip(corners, ORDERS[int(torch.randint(len(ORDERS), ()))], strict=True):
        left, top = corners[patch]
        made.paste(image.crop((left, top, left + width, top + height)), (x, y))
    return made


SIGMA = (0.6, 2.0)
"""Least and largest deviation of the blur, in pixels."""


class Blur(Word):
    """Blur with a Gaussian of a deviation between 0.6 and 2 pixels, each image its own (`blur`).

    It is PIL's GaussianBlur to the bit: three box blurs along each axis (Gwosdek et al. 2011), rounded to 8 bits after
    each, which differ from a Gaussian by a few levels. Borders are repeated outwards.
    """

    draws: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * uniforms.host[:, 0].double()
        weights = _box_weights(sigma).to(images.device, non_blocking=True)
        # Around 0, so that sums of products with 24-bit weights fit 32 bits.
        levels = images.to(torch.int32).sub_(128)
        for _ in range(2):
            for _ in range(3):
                levels = _box_blur(levels, weights)
            levels = levels.mT.contiguous()
        return levels.add_(128).to(torch.uint8)

    def single(self, frame: Frame) -> Single:
        return _single_blur


def _single_blur(image: Image.Image) -> Image.Image:
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * float(torch.rand((), dtype=torch.float64))
    return image.filter(ImageFilter.GaussianBlur(sigma))


def _box_weights(sigma: Tensor) -> Tensor:
    """The box whose threefold blur has a deviation of `sigma`, in PIL's 32-bit floats and 24-bit fixed-point numbers.

    Args:
        sigma: N float64 on the host, below 3.4: boxes reach two pixels to either side.

    Returns:
        N x 4 int32: weights of a pixel, of its neighbours, of theirs, and what to add for rounding.
    """
    variance = np.square(sigma.numpy().astype(np.float32)) / 3
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1).astype(np.float32)
    whole = np.floor((length - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    part /= 6 * (variance - (whole + 1) * (whole + 1))
    inner = (np.float32(2**24) / ((whole + part) * 2 + 1)).astype(np.int64)
    wide = whole > 0
    outer = (2**24 - (2 * wide + 1) * inner) // 2
    missing = 2**24 - (2 * wide + 1) * inner - 2 * outer
    weights = [inner, np.where(wide, inner, outer), np.where(wide, outer, 0), 2**23 - 128 * missing]
    return torch.from_numpy(np.stack(weights, 1).astype(np.int32))


def _box_blur(levels: Tensor, weights: Tensor) -> Tensor:
    """Along the rows of pixels, N x ch x H x W int32 from -128 to 127."""
    padded = torch.cat([levels[..., :1]] * 2 + [levels] + [levels[..., -1:]] * 2, -1)
    centre, near, far, rounding = weights[:, :, None, None, None].unbind(1)
    total = (levels * centre).add_(rounding)
    total += (padded[..., 1:-3] + padded[..., 3:-1]).mul_(near)
    total += (padded[..., :-4] + padded[..., 4:]).mul_(far)
    return total.bitwise_right_shift_(24)


class Sobel(Word):
    """Edges: what is left of each channel is the size of its gradient (`sobel`).

    A level becomes ⌊√((gx² + gy²) / 2)⌋, gx and gy the differences to both sides over 8 with weights 1, 2, 1 across,
    borders repeated outwards: scikit-image's `filters.sobel` of each channel, which is at most 127. The official
    program passes colours as a third axis, and so mixes differences between channels in.
    """

    draws: ClassVar[int] = 0

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        return _edges(images)

    def single(self, frame: Frame) -> Single:
        return _single_edges


def _edges(images: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(images.float(), [1] * 4, mode="replicate")
    across = padded[..., :-2] + padded[..., 1:-1].mul(2) + padded[..., 2:]
    down = padded[..., :-2, :] + padded[..., 1:-1, :].mul(2) + padded[..., 2:, :]
    gradient_y = across[..., 2:, :] - across[..., :-2, :]
    gradient_x = down[..., 2:] - down[..., :-2]
    return (gradient_x.square_() + gradient_y.square_()).div_(2 * 8**2).sqrt_().to(torch.uint8)


def _single_edges(image: Image.Image) -> Image.Image:
    return to_pil_image(_edges(pil_to_tensor(image)[None])[0])
