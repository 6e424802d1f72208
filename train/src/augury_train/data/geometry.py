"""The words that crop, mirror and blank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from augury_train.data.transforms import Frame, Single, Uniforms, Word, pick

ATTEMPTS = 10
"""How often torchvision draws a box until one fits; after that it takes the centre, or none."""


class Flip(Word):
    """Mirror left to right with probability 1/2 (`flip`)."""

    draws: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        # Choosing among rows copies runs of pixels; torch.where looks at each one, and takes eight times as long.
        rows = torch.arange(len(images), device=images.device)
        mirrored = len(images) * (uniforms.device[:, 0] < 0.5)
        return torch.cat([images, images.flip(-1)]).index_select(0, rows + mirrored)

    def single(self, frame: Frame) -> Single:
        return v2.RandomHorizontalFlip()


class Crop(Word):
    """Pad by `padding` black pixels on every side and crop back to the size at a random place (`crop:4`)."""

    padding: int = Field(gt=0, le=4096, description="pixels")
    draws: ClassVar[int] = 2

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        return _windows(padded, images.shape[-2:], _offsets(uniforms, self.padding))

    def single(self, frame: Frame) -> Single:
        return _PadAndCrop(self.padding, "constant")


class ReflectCrop(Word):
    """The same with the image mirrored at its borders, which are not repeated (`reflect_crop:4`)."""

    padding: int = Field(gt=0, description="pixels, fewer than the image has")
    draws: ClassVar[int] = 2

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        padded = images
        for dim in (2, 3):
            side = images.shape[dim]
            places = torch.arange(-self.padding, side + self.padding, device=images.device).abs()
            padded = padded.index_select(dim, (side - 1) - ((side - 1) - places).abs())
        return _windows(padded, images.shape[-2:], _offsets(uniforms, self.padding))

    def single(self, frame: Frame) -> Single:
        return _PadAndCrop(self.padding, "reflect")

    def fault(self, frame: Frame) -> str | None:
        side = min(frame.size)
        if self.padding < side:
            return None
        return f"must pad by less than the image's side, {side}. Set it with reflect_crop:{max(1, side // 8)}."


def _offsets(uniforms: Uniforms, padding: int) -> Tensor:
    """N x 2 int64 from 0 to twice the padding."""
    return pick(uniforms.device, 2 * padding + 1)


def _windows(images: Tensor, size: Sequence[int], offsets: Tensor) -> Tensor:
    """Of each image the window of `size` (height, width) at its own offset (top, left).

    Rows of pixels are copied whole: five times as fast as choosing along unfolded dimensions.
    """
    (n, channels, height, width), device = images.shape, images.device
    runs = images.contiguous().view(-1).unfold(0, size[1], 1)
    top, left = offsets[:, :, None, None].unbind(1)
    rows = torch.arange(n * channels, device=device).view(n, channels, 1) * height + top
    starts = (rows + torch.arange(size[0], device=device)) * width + left
    return runs.index_select(0, starts.flatten()).view(n, channels, *size)


@dataclass(frozen=True)
class _PadAndCrop:
    """torchvision's RandomCrop with padding, for images of any size."""

    padding: int
    mode: str

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left = torch.randint(0, 2 * self.padding + 1, (2,)).tolist()
        padded = v2.functional.pad(image, [self.padding], padding_mode=self.mode)
        return v2.functional.crop(padded, top, left, image.height, image.width)


class Cutout(Word):
    """Blank a square of side `size` around a random pixel, cut off at the border (`cutout:16`; DeVries and Taylor
    2017, arXiv 1708.04552).

    It blanks with the mean: zeros where the image is normalised already.
    """

    size: int = Field(gt=0, description="side in pixels")
    draws: ClassVar[int] = 2
    last: ClassVar[bool] = True

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        height, width = images.shape[-2:]
        inside_y = self._inside(height, uniforms.device[:, 0])
        inside_x = self._inside(width, uniforms.device[:, 1])
        return _blank(images, inside_y[:, :, None] * inside_x[:, None, :], frame)

    def _inside(self, side: int, uniforms: Tensor) -> Tensor:
        start = pick(uniforms, side) - self.size // 2
        return between(start, start + self.size, side)

    def single(self, frame: Frame) -> Single:
        return _SingleCutout(self.size, tuple(frame.blank))


@dataclass(frozen=True)
class _SingleCutout:
    size: int
    blank: tuple[int, ...]

    def __call__(self, image: Image.Image) -> Image.Image:
        top = int(torch.randint(image.height, ())) - self.size // 2
        left = int(torch.randint(image.width, ())) - self.size // 2
        image = image.copy()
        image.paste(
            self.blank if len(self.blank) > 1 else self.blank[0], (left, top, left + self.size, top + self.size)
        )
        return image


class RandomErasing(Word):
    """Blank a random rectangle in a share `p` of the images (`random_erasing:0.25`; Zhong et al. 2017,
    arXiv 1708.04896), as torchvision's RandomErasing draws it: 2 to 33 % of the area, sides 0.3 to 3.3.

    It blanks with the mean: zeros where the image is normalised already.
    """

    p: float = Field(0.25, gt=0, le=1, description="share of the images")
    draws: ClassVar[int] = 1 + 2 * ATTEMPTS + 2
    last: ClassVar[bool] = True

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        height, width = images.shape[-2:]
        drawn = uniforms.device
        # torchvision's ratio is height over width here, and a box must be smaller than the image.
        w, h, fits = _boxes(drawn[:, 1 : 1 + 2 * ATTEMPTS], width, height, (0.02, 0.33), (1 / 3.3, 1 / 0.3), 1)
        top, left = _place(drawn[:, -2], height - h), _place(drawn[:, -1], width - w)
        inside_y, inside_x = between(top, top + h, height), between(left, left + w, width)
        chosen = (fits & (drawn[:, 0] < self.p)).float()[:, None, None]
        return _blank(images, inside_y[:, :, None] * inside_x[:, None, :] * chosen, frame)

    def single(self, frame: Frame) -> Single:
        erase = v2.RandomErasing(self.p, value=[float(value) for value in frame.blank])
        return v2.Compose([v2.PILToTensor(), erase, v2.ToPILImage()])


class RandomResizedCrop(Word):
    """Crop a box of random area and shape and resize it to the run's image size (`random_resized_crop:0.08`), as
    torchvision's RandomResizedCrop does: sides 3/4 to 4/3.

    `stream` crops from the whole image, `memory` from the centre square that it keeps.
    """

    min_scale: float = Field(0.08, gt=0, le=1, description="smallest share of the area")
    draws: ClassVar[int] = 2 * ATTEMPTS + 2

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        height, width = images.shape[-2:]
        drawn, ratios = uniforms.device, (3 / 4, 4 / 3)
        w, h, fits = _boxes(drawn[:, : 2 * ATTEMPTS], width, height, (self.min_scale, 1.0), ratios, 0)
        # Where none fitted: the largest box in the middle that is not too long.
        whole_w = min(width, round(height * ratios[1])) if width / height > ratios[1] else width
        whole_h = min(height, round(width / ratios[0])) if width / height < ratios[0] else height
        w, h = torch.where(fits, w, whole_w), torch.where(fits, h, whole_h)
        top = _place(drawn[:, -2], height - h).where(fits, (height - h) // 2)
        left = _place(drawn[:, -1], width - w).where(fits, (width - w) // 2)
        weights_y = _resampling(top, h, height, frame.size[0], frame.interpolation)
        weights_x = _resampling(left, w, width, frame.size[1], frame.interpolation)
        n, channels = images.shape[:2]
        across = torch.bmm(images.reshape(n, channels * height, width).float(), weights_x.mT)
        # PIL cuts off here what bicubic weights overshoot; it rounds, too, after whichever pass its version does first.
        across = across.clamp_(0, 255).reshape(n, channels, height, frame.size[1])
        return (weights_y[:, None] @ across).round_().clamp_(0, 255).to(torch.uint8)

    def single(self, frame: Frame) -> Single:
        mode = v2.InterpolationMode(frame.interpolation)
        return v2.RandomResizedCrop(frame.size, scale=(self.min_scale, 1.0), interpolation=mode)


def between(start: Tensor, end: Tensor, side: int) -> Tensor:
    """N x side float32: 1 from `start` to before `end`, else 0."""
    place = torch.arange(side, device=start.device)
    return ((place >= start[:, None]) & (place < end[:, None])).float()


def _blank(images: Tensor, mask: Tensor, frame: Frame) -> Tensor:
    """Set the pixels where an N x H x W mask is 1 to the mean, and leave those where it is 0."""
    if images.is_floating_point():
        # A product, which is many times as fast as masked_fill; images are finite.
        return images * (1 - mask)[:, None]
    blank = torch.tensor(frame.blank, dtype=images.dtype).to(images.device, non_blocking=True)
    return torch.where(mask[:, None] > 0, blank[:, None, None], images)


def _place(uniforms: Tensor, room: Tensor) -> Tensor:
    """A whole number from 0 to `room`, N int64."""
    return torch.minimum((uniforms * (room + 1)).long(), room).clamp_(min=0)


def _boxes(
    uniforms: Tensor, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], margin: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of random area and ratio: of each row's attempts, the first one that fits.

    Args:
        uniforms: N x 2 * attempts.
        width, height: of the image.
        scale: least and largest share of the area.
        ratio: least and largest width over height; its logarithm is uniform.
        margin: how much smaller than the image a box must be.

    Returns:
        widths and heights, N int64 each, and N bool: whether any attempt fitted.
    """
    area, shape = uniforms.unflatten(1, (-1, 2)).double().unbind(2)
    area = width * height * (scale[0] + (scale[1] - scale[0]) * area)
    aspect = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    good = (w > 0) & (h > 0) & (w <= width - margin) & (h <= height - margin)
    first = good.int().argmax(1, keepdim=True)
    return w.gather(1, first)[:, 0], h.gather(1, first)[:, 0], good.any(1)


def _resampling(start: Tensor, length: Tensor, side: int, out: int, interpolation: str) -> Tensor:
    """The weights with which PIL resizes a piece of each row of pixels, as matrices.

    Args:
        start, length: N int64, the pieces.
        side: pixels of a row.
        out: pixels that a piece becomes.
        interpolation: `bilinear` or `bicubic`, both with PIL's support, which grows as the image shrinks.

    Returns:
        N x out x side float32; rows sum to 1.
    """
    scale = length.double()[:, None, None] / out
    stretch = scale.clamp(min=1.0)
    pixel = torch.arange(side, device=start.device)
    centre = start[:, None, None] + (torch.arange(out, device=start.device)[:, None] + 0.5) * scale
    x = ((pixel + 0.5 - centre) / stretch).abs()
    if interpolation == "bilinear":
        weights = (1 - x).clamp(min=0)
    else:
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    ends = (start + length)[:, None, None]
    weights = weights * ((pixel >= start[:, None, None]) & (pixel < ends))
    return (weights / weights.sum(2, keepdim=True)).float()


def centre_square(image: Image.Image, side: int, interpolation: str) -> Image.Image:
    """The middle of an image, its shorter side resized to `side` (timm's evaluation transform)."""
    if image.size == (side, side):
        return image
    return ImageOps.fit(image, (side, side), _resample(interpolation))


def centre_start(whole: int, part: int) -> int:
    """Where the middle `part` pixels of `whole` begin, as torchvision's CenterCrop rounds it."""
    return round((whole - part) / 2)


def _resample(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]
