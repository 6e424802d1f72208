"""What policies do to an image, batched: N x ch x H x W uint8 images, ch 1 or 3, each with its own magnitude.

Each op gives what Pillow gives for a single image: colours exactly, in Pillow's own arithmetic; geometry in its
fixed-point form, nearest neighbour, black outside. No op reads a number back from the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Op = Callable[[Tensor, Tensor], Tensor]
"""Images N x ch x H x W uint8 and magnitudes N float64 -> images of that shape."""


def identity(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Nothing."""
    return images


def brightness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blend with black; 1 changes nothing (`ImageEnhance.Brightness`)."""
    return _blend(torch.zeros_like(images[:, :, :1, :1]), images, magnitudes)


def contrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blend with the mean grey of the image (`ImageEnhance.Contrast`)."""
    grey = _grey(images)
    # Pillow rounds the exact mean; sums of integers stay exact in float64.
    mean = (grey.flatten(1).double().mean(1) + 0.5).floor().to(torch.uint8)
    return _blend(mean[:, None, None, None], images, magnitudes)


def colour(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blend with the image in grey (`ImageEnhance.Color`)."""
    if images.shape[1] == 1:
        return images
    return _blend(_grey(images), images, magnitudes)


def sharpness(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Blend with the smoothed image (`ImageEnhance.Sharpness`); its border is not smoothed."""
    height, width = images.shape[-2:]
    smooth = images.clone()
    if height > 2 and width > 2:
        # The filter weighs the pixel itself 5 and its eight neighbours 1, of 13.
        wide = images.to(torch.int32)
        rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
        total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
        smooth[:, :, 1:-1, 1:-1] = torch.div(2 * total + 13, 26, rounding_mode="floor").to(torch.uint8)
    return _blend(smooth, images, magnitudes)


def invert(images: Tensor, magnitudes: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - images


def solarize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Invert values from the magnitude (0 to 256) on."""
    return torch.where(images < _wide(magnitudes), images, 255 - images)


def posterize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Keep the magnitude's (0 to 8) highest bits."""
    dropped = (8 - magnitudes.long()).clamp(0, 8)
    mask = (255 - (torch.ones_like(dropped) << dropped) + 1).to(torch.uint8)
    return images & _wide(mask)


def autocontrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Stretch each channel's values to 0 to 255 (`ImageOps.autocontrast`)."""
    flat = images.flatten(2)
    low, high = flat.amin(2).double(), flat.amax(2).double()
    levels = torch.arange(256, dtype=torch.float64, device=images.device)
    # Not 255 / tensor, which torch takes as a product with the reciprocal, rounded twice.
    scale = torch.full_like(low, 255).div((high - low).clamp(min=1))
    table = (levels * scale[..., None] + (-low * scale)[..., None]).trunc().clamp(0, 255)
    return _look_up(images, torch.where((high > low)[..., None], table, levels))


def equalize(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Make each channel's histogram flat (`ImageOps.equalize`)."""
    n, channels, height, width = images.shape
    flat = images.flatten(2).long()
    counts = torch.zeros(n, channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    levels = torch.arange(256, device=images.device)
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = torch.div(height * width - last, 255, rounding_mode="floor")
    before = counts.cumsum(2) - counts
    whole = torch.div(step, 2, rounding_mode="floor") + before
    table = torch.div(whole, step.clamp(min=1), rounding_mode="floor").clamp(max=255)
    return _look_up(images, torch.where(step > 0, table, levels))


def shear_x(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Move rows sideways by the magnitude times their distance from the top."""
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _affine(images, (one, magnitudes, zero, zero, one, zero))


def shear_y(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Move columns up by the magnitude times their distance from the left."""
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _affine(images, (one, zero, zero, magnitudes, one, zero))


def translate_x(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Move right by whole pixels."""
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _affine(images, (one, zero, -magnitudes.trunc(), zero, one, zero))


def translate_y(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Move down by whole pixels."""
    one, zero = torch.ones_like(magnitudes), torch.zeros_like(magnitudes)
    return _affine(images, (one, zero, zero, zero, one, -magnitudes.trunc()))


def rotate(images: Tensor, magnitudes: Tensor) -> Tensor:
    """Turn counter-clockwise by degrees around the centre (`Image.rotate`)."""
    height, width = images.shape[-2:]
    # Pillow rounds to 15 digits, so that a quarter turn is exact.
    angle = -torch.deg2rad(magnitudes % 360)
    cos, sin = (torch.round(f(angle) * 1e15) / 1e15 for f in (torch.cos, torch.sin))
    x, y = width / 2, height / 2
    return _affine(images, (cos, sin, -cos * x - sin * y + x, -sin, cos, sin * x - cos * y + y))


def _affine(images: Tensor, matrix: tuple[Tensor, ...]) -> Tensor:
    """Pillow's nearest-neighbour affine transform, in its 16-bit fixed point.

    Args:
        images: N x ch x H x W uint8.
        matrix: a to f, N float64 each: what is shown at (x, y) lies at (ax + by + c, dx + ey + f).
    """
    (_, channels, height, width), device = images.shape, images.device
    a, b, c, d, e, f = matrix
    fixed = [_fixed(v) for v in (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)]
    a, b, c, d, e, f = (v[:, None, None] for v in fixed)
    x, y = torch.arange(width, device=device), torch.arange(height, device=device)[:, None]
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # One black pixel more, behind the last one, is what lies outside.
    place = torch.where(inside, row * width + column, height * width).flatten(1)
    source = torch.nn.functional.pad(images.flatten(2), (0, 1))
    return source.gather(2, place[:, None].expand(-1, channels, -1)).view(images.shape)


def _fixed(values: Tensor) -> Tensor:
    return (values * 65536 + 0.5).floor().long()


def _blend(start: Tensor, end: Tensor, magnitudes: Tensor) -> Tensor:
    """Pillow's blend: from `start` (0) to `end` (1) and beyond, in float32, cut off and not rounded."""
    first = start.float()
    return (first + _wide(magnitudes).float() * (end.float() - first)).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """N x 1 x H x W uint8, in Pillow's integer weights of red, green and blue."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace each value by its channel's entry of a table N x ch x 256."""
    return table.to(torch.uint8).gather(2, images.flatten(2).long()).view(images.shape)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]


OPS: dict[str, Op] = {
    "Identity": identity,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": colour,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
}
"""By the names that torchvision's policies call them."""


NOTHING = -1
"""In place of an op's number: the image stays as it is."""


def apply(images: Tensor, names: list[str], chosen: Tensor, magnitudes: Tensor) -> Tensor:
    """Do to each image an op of its own.

    Args:
        images: N x ch x H x W uint8.
        names: of the ops that `chosen` counts.
        chosen: N int64 on the host, so that grouping the images by op reads nothing from the device.
        magnitudes: N float64 on the host.

    Returns:
        new images of that shape.
    """
    out = images.clone()
    for number in chosen.unique().tolist():
        if number == NOTHING or names[number] == "Identity":
            continue
        rows = (chosen == number).nonzero().flatten()
        there = rows.to(images.device, non_blocking=True)
        strengths = magnitudes[rows].to(images.device, non_blocking=True)
        out.index_copy_(0, there, OPS[names[number]](images.index_select(0, there), strengths))
    return out
