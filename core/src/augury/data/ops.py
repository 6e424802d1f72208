"""Colours and geometry of 8-bit images, many at once, each image with its own magnitude: what PIL does to one.

All ops take N x ch x H x W uint8 with 1 or 3 channels, do not loop over images, and never make the host wait for the
device. There are three kinds. Geometry is an inverse affine matrix for each image, applied by one gather. What maps
each level to another one is a table of 256 for each image, applied by one gather, too. The rest mixes channels or
neighbours. `apply_each` gives every image an op of its own and still gathers once a kind.

PIL computes in 32-bit floats and in fixed-point numbers, and cuts off more often than it rounds. The order of
operations below is PIL's: results are equal, not close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor

FIXED = 65536
"""PIL's affine transform counts in 1/65536 of a pixel."""


def affine(images: Tensor, matrices: Tensor) -> Tensor:
    """Move pixels: nearest neighbour, black where there was none (PIL's `Image.transform` with AFFINE).

    Args:
        images: N x ch x H x W uint8, sides below 4096.
        matrices: N x 2 x 3 float64 on any device, from (x, y, 1) in the result to (x, y) in the image; pixel (0, 0) has
            its centre at (0.5, 0.5).

    Returns:
        the same shape and dtype.
    """
    (height, width), device = images.shape[-2:], images.device
    shift = matrices[:, :, 2] + matrices[:, :, 0] * 0.5 + matrices[:, :, 1] * 0.5
    fixed = torch.stack([matrices[:, :, 0], matrices[:, :, 1], shift], 2).mul(FIXED).add_(0.5).floor_()
    along_x, along_y, start = fixed.to(torch.int32).to(device, non_blocking=True)[:, :, :, None, None].unbind(2)
    x = torch.arange(width, dtype=torch.int32, device=device)
    y = torch.arange(height, dtype=torch.int32, device=device)[:, None]
    from_x, from_y = (along_x * x + (along_y * y + start)).bitwise_right_shift_(16).unbind(1)
    near_x, near_y = from_x.clamp(0, width - 1), from_y.clamp(0, height - 1)
    inside = (near_x == from_x) & (near_y == from_y)
    places = (near_y * width + near_x).long().flatten(1)[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, places).view(images.shape) * inside[:, None]


def affine_bilinear(images: Tensor, matrices: Tensor) -> Tensor:
    """The same with bilinear interpolation, against black outside, as torchvision does it on tensors.

    Args:
        images: N x ch x H x W uint8.
        matrices: as for `affine`.

    Returns:
        the same shape and dtype.
    """
    (height, width), device = images.shape[-2:], images.device
    matrices = matrices.float().to(device, non_blocking=True)
    x = torch.arange(width, device=device) + 0.5
    y = (torch.arange(height, device=device) + 0.5)[:, None]
    along_x, along_y, start = matrices[:, :, :, None, None].unbind(2)
    from_x, from_y = (along_x * x + along_y * y + start).unbind(1)
    grid = torch.stack([from_x * (2 / width) - 1, from_y * (2 / height) - 1], 3)
    moved = torch.nn.functional.grid_sample(images.float(), grid, align_corners=False)
    return moved.round_().to(torch.uint8)


def _matrices(magnitudes: Tensor, place: tuple[int, int], values: Tensor) -> Tensor:
    """N x 2 x 3 float64: the identity but for one place."""
    matrices = torch.zeros(len(magnitudes), 2, 3, dtype=torch.float64, device=magnitudes.device)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1.0
    matrices[:, place[0], place[1]] = values.double()
    return matrices


def _shear_x(slopes: Tensor, height: int, width: int) -> Tensor:
    return _matrices(slopes, (0, 1), slopes)


def _shear_y(slopes: Tensor, height: int, width: int) -> Tensor:
    return _matrices(slopes, (1, 0), slopes)


def _translate_x(pixels: Tensor, height: int, width: int) -> Tensor:
    return _matrices(pixels, (0, 2), -pixels.trunc())


def _translate_y(pixels: Tensor, height: int, width: int) -> Tensor:
    return _matrices(pixels, (1, 2), -pixels.trunc())


def _rotate(degrees: Tensor, height: int, width: int) -> Tensor:
    angles = -degrees.double().deg2rad()
    cos, sin = angles.cos(), angles.sin()
    x, y = width / 2, height / 2
    rows = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    return torch.stack(rows, 1).view(-1, 2, 3)


MATRICES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
}
"""Magnitudes N, height, width -> inverse matrices N x 2 x 3 float64, by torchvision's names."""


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Put another level in place of each one (PIL's `Image.point`).

    Args:
        images: N x ch x H x W uint8.
        tables: N x ch x 256 uint8, or N x 1 x 256 for all channels.
    """
    places = images.flatten(2).long()
    return tables.expand(-1, images.shape[1], -1).gather(2, places).view(images.shape)


def _ramp(like: Tensor) -> Tensor:
    return torch.arange(256, device=like.device)


def _column(magnitudes: Tensor) -> Tensor:
    return magnitudes[:, None, None]


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return (_ramp(images) * _column(factors).float()).clamp_(0, 255).to(torch.uint8)


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    grey, pixels = _grey(images), images.shape[-2] * images.shape[-1]
    total = grey.sum((1, 2, 3), dtype=torch.int64)
    mean = _column((2 * total + pixels) // (2 * pixels))
    return _blend(mean.float(), _ramp(images), _column(factors))


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    lost = 8 - _column(bits).long()
    return (_ramp(images) >> lost << lost).to(torch.uint8)


def _solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    ramp = _ramp(images)
    return torch.where(ramp < _column(thresholds), ramp, 255 - ramp).to(torch.uint8)


def _invert(images: Tensor, magnitudes: Tensor) -> Tensor:
    return (255 - _ramp(images)).to(torch.uint8).expand(len(images), 1, -1)


def _autocontrast(images: Tensor, magnitudes: Tensor) -> Tensor:
    levels, ramp = images.flatten(2), _ramp(images)
    low, high = levels.amin(2, keepdim=True).double(), levels.amax(2, keepdim=True).double()
    # A number over a tensor would be the number times the reciprocal, which rounds twice.
    scale = torch.full_like(low, 255.0) / (high - low).clamp_(min=1)
    stretched = (ramp * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, ramp).to(torch.uint8)


def _equalize(images: Tensor, magnitudes: Tensor) -> Tensor:
    levels, ramp = images.flatten(2).long(), _ramp(images)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, levels, counts.new_ones(()).expand_as(levels))
    of_highest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - of_highest) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, spread, ramp).to(torch.uint8)


def _blend(one: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    """From `one` (factor 0) by way of `other` (factor 1) and beyond it, uint8 (PIL's `Image.blend`)."""
    # A product and a sum, each rounded to 32 bits: lerp or addcmul would round once.
    return (other - one).mul_(factors.float()).add_(one).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """N x 1 x H x W int32: luma, as PIL's mode L has it."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().split(1, 1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768).bitwise_right_shift_(16)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Between grey (factor 0) and the image (1), and beyond. Grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    return _blend(_grey(images).float(), images, factors[:, None, None, None])


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Between smoothed (factor 0) and the image (1), and beyond. The outermost pixels stay as they are."""
    if min(images.shape[-2:]) < 3:
        return images
    levels = images.float()
    middle = levels[..., 1:-1, 1:-1]
    rows = levels[..., :-2, :] + levels[..., 1:-1, :] + levels[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = around.add_(middle, alpha=4).mul_(1 / 13).add_(0.5).floor_()
    made = images.clone()
    made[..., 1:-1, 1:-1] = _blend(smooth, middle, factors[:, None, None, None])
    return made


TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _brightness,
    "Contrast": _contrast,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Invert": _invert,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}
"""Images, magnitudes N -> tables N x (1 or ch) x 256 uint8."""

OTHERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Color": saturation, "Sharpness": sharpness}

NAMES = ("Identity", *MATRICES, *TABLES, *OTHERS)
"""All ops; `apply_each` knows them by their number."""


def apply(images: Tensor, name: str, magnitudes: Tensor) -> Tensor:
    """Apply one op to all images, to each with its own magnitude.

    Args:
        images: N x ch x H x W uint8.
        name: one of `NAMES`.
        magnitudes: N on the images' device: slopes for shears; pixels, cut off to whole ones, for translations; degrees
            counter-clockwise for Rotate; factors, 1 for no change, for Brightness, Contrast, Color and Sharpness; bits
            kept, 0 to 8, for Posterize; the lowest level that is inverted for Solarize. The others do not look at them.

    Returns:
        the same shape and dtype.
    """
    if name in MATRICES:
        return affine(images, MATRICES[name](magnitudes, *images.shape[-2:]))
    if name in TABLES:
        return look_up(images, TABLES[name](images, magnitudes))
    return OTHERS[name](images, magnitudes) if name in OTHERS else images


def apply_each(images: Tensor, ops: Tensor, magnitudes: Tensor, bilinear: bool = False) -> Tensor:
    """Apply to each image an op of its own.

    Args:
        images: N x ch x H x W uint8.
        ops: N int64 on the host, places in `NAMES`.
        magnitudes: N float64 on the host, as for `apply`.
        bilinear: how pixels are moved; else from the nearest neighbour.

    Returns:
        the same shape and dtype.
    """
    order = ops.argsort(stable=True)
    bounds = [0, *accumulate(ops.bincount(minlength=len(NAMES)).tolist())]
    spans = {name: slice(*bounds[i : i + 2]) for i, name in enumerate(NAMES) if bounds[i] < bounds[i + 1]}
    here, places = magnitudes[order], torch.stack([order, order.argsort()]).to(images.device, non_blocking=True)
    sizes, rows = here.to(images.device, non_blocking=True), images.index_select(0, places[0])
    if found := _found(spans, MATRICES):
        matrices = [MATRICES[name](here[span], *images.shape[-2:]) for name, span in found.items()]
        whole = _whole(found)
        rows[whole] = (affine_bilinear if bilinear else affine)(rows[whole], torch.cat(matrices))
    if found := _found(spans, TABLES):
        tables = [TABLES[name](rows[span], sizes[span]) for name, span in found.items()]
        whole = _whole(found)
        rows[whole] = look_up(rows[whole], torch.cat([t.expand(-1, images.shape[1], -1) for t in tables]))
    for name, span in _found(spans, OTHERS).items():
        rows[span] = OTHERS[name](rows[span], sizes[span])
    # Choosing rows copies them whole; index_copy_ looks at each pixel, and takes ten times as long.
    return rows.index_select(0, places[1])


def _found(spans: dict[str, slice], names: Iterable[str]) -> dict[str, slice]:
    return {name: spans[name] for name in names if name in spans}


def _whole(spans: dict[str, slice]) -> slice:
    return slice(min(s.start for s in spans.values()), max(s.stop for s in spans.values()))
