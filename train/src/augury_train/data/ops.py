"""Colours and geometry of 8-bit images, many at once, each image with its own magnitude: what PIL does to one.

All ops take N x ch x H x W uint8 with 1 or 3 channels, do not loop over images, and never make the host wait for the
device. There are three kinds. Geometry is an inverse affine matrix for each image, applied by one gather. What depends
on how often an image has each level is a table of 256 for each image, applied by one gather, too. The rest is
arithmetic on pixels. `apply_each` gives every image an op of its own and still gathers once a kind.

PIL computes in 32-bit floats and in fixed-point numbers, and cuts off more often than it rounds. The order of
operations below is PIL's: results are equal, not close.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from augury_train.data.affine import OF_PIXELS, OF_ROWS, affine, affine_bilinear, affine_rows, matrices_of


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Put another level in place of each one (PIL's `Image.point`).

    Args:
        images: N x ch x H x W uint8.
        tables: N x ch x 256 uint8.
    """
    places = images.flatten(2).long()
    return tables.gather(2, places).view(images.shape)


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _cut_off(images * factors.float())


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    grey, pixels = _grey(images.float()), images.shape[-2] * images.shape[-1]
    total = grey.sum((1, 2, 3), keepdim=True, dtype=torch.float64).long()
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean.float(), images, factors)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    kept = torch.bitwise_left_shift(255, 8 - bits.int())
    return images & kept.to(torch.uint8)


def _solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    # 255 where a level is not below the threshold: what is left to do is an exclusive or, which inverts there.
    inverted = images.to(torch.int16).ge_(thresholds.ceil().to(torch.int16))
    return inverted.to(torch.uint8).neg_().bitwise_xor_(images)


def _invert(images: Tensor, magnitudes: Tensor) -> Tensor:
    return 255 - images


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Between grey (factor 0) and the image (1), and beyond. Grey images stay as they are."""
    if images.shape[1] == 1:
        return images
    levels = images.float()
    return _blend(_grey(levels), levels, factors)


def _sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Between smoothed (factor 0) and the image (1), and beyond. The outermost pixels stay as they are."""
    if min(images.shape[-2:]) < 3:
        return images
    # Row after row in one long row: what comes out at both ends of each is replaced by what was there.
    width, levels = images.shape[-1], images.to(torch.int16).flatten(2)
    middle = levels[..., width + 1 : -width - 1]
    columns = (levels[..., : -2 * width] + levels[..., width:-width]).add_(levels[..., 2 * width :])
    around = (columns[..., :-2] + columns[..., 1:-1]).add_(columns[..., 2:]).add_(middle, alpha=4)
    smooth = around.float().mul_(1 / 13).add_(0.5).floor_()
    made = images.clone(memory_format=torch.contiguous_format)
    made.flatten(2)[..., width + 1 : -width - 1] = _blend(smooth, middle, factors[:, 0])
    made[..., 0], made[..., -1] = images[..., 0], images[..., -1]
    return made


def _blend(one: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    """From `one` (factor 0) by way of `other` (factor 1) and beyond it, uint8 (PIL's `Image.blend`)."""
    # A product and a sum, each rounded to 32 bits: lerp or addcmul would round once.
    return _cut_off((other - one).mul_(factors.float()).add_(one))


def _cut_off(levels: Tensor) -> Tensor:
    """To the range of 8 bits, uint8; changes `levels`."""
    # By way of 32 bits, which processors convert many at once.
    return levels.clamp_(0, 255).to(torch.int32).to(torch.uint8)


def _grey(levels: Tensor) -> Tensor:
    """N x 1 x H x W float32: luma, as PIL's mode L has it; PIL's whole numbers, which 32-bit floats hold exactly."""
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels.split(1, 1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).mul_(1 / 65536).floor_()


def _autocontrast(images: Tensor) -> Tensor:
    levels, ramp = images.flatten(2), torch.arange(256, dtype=torch.float64, device=images.device)
    low, high = levels.amin(2, keepdim=True).double(), levels.amax(2, keepdim=True).double()
    wide = high > low
    # A number over a tensor would be the number times the reciprocal, which rounds twice.
    scale = torch.where(wide, torch.full_like(low, 255.0) / (high - low), 1.0)
    return _cut_off((ramp * scale).add_(torch.where(wide, -low * scale, 0.0)))


def _equalize(images: Tensor) -> Tensor:
    levels, ramp = images.flatten(2), torch.arange(256, dtype=torch.int32, device=images.device)
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, levels.long(), counts.new_ones(()).expand_as(levels))
    of_highest = counts.gather(2, levels.amax(2, keepdim=True).long())
    step = (levels.shape[2] - of_highest) // 255
    below = counts.cumsum(2, dtype=torch.int32).sub_(counts)
    spread = below.add_(step // 2).div_(step.clamp(min=1), rounding_mode="trunc").clamp_(max=255)
    return torch.where(step > 0, spread, ramp).to(torch.uint8)


GEOMETRY = (*OF_ROWS, *OF_PIXELS)

TABLES: dict[str, Callable[[Tensor], Tensor]] = {"AutoContrast": _autocontrast, "Equalize": _equalize}
"""Images -> tables N x ch x 256 uint8."""

ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": _brightness,
    "Contrast": _contrast,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Invert": _invert,
    "Color": _saturation,
    "Sharpness": _sharpness,
}
"""Images, magnitudes N x 1 x 1 x 1 -> images."""

NAMES = ("Identity", *GEOMETRY, *TABLES, *ARITHMETIC)
"""All ops; `apply_each` knows them by their number."""


def apply(images: Tensor, name: str, magnitudes: Tensor) -> Tensor:
    """Apply one op to all images, to each with its own magnitude.

    Args:
        images: N x ch x H x W uint8.
        name: one of `NAMES`.
        magnitudes: N on the host: slopes for shears; pixels, cut off to whole ones, for translations; degrees
            counter-clockwise for Rotate; factors, 1 for no change, for Brightness, Contrast, Color and Sharpness; bits
            kept, 0 to 8, for Posterize; the lowest level that is inverted for Solarize. The others do not look at them.

    Returns:
        the same shape and dtype.
    """
    size = (images.shape[-2], images.shape[-1])
    if name in GEOMETRY:
        matrices = matrices_of(magnitudes.double().numpy(), {name: slice(None)}, size)
        return affine_rows(images, matrices) if name in OF_ROWS else affine(images, matrices)
    if name in TABLES:
        return look_up(images, TABLES[name](images))
    return ARITHMETIC[name](images, magnitudes[:, None, None, None]) if name in ARITHMETIC else images


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
    # Few numbers are sorted and counted in numpy sooner than torch has begun.
    numbers, size = ops.numpy(), (images.shape[-2], images.shape[-1])
    order = numbers.argsort(kind="stable")
    bounds = [0, *np.bincount(numbers, minlength=len(NAMES)).cumsum().tolist()]
    spans = {name: slice(*bounds[i : i + 2]) for i, name in enumerate(NAMES) if bounds[i] < bounds[i + 1]}
    here = magnitudes.double().numpy()[order]
    sizes = torch.from_numpy(here).to(images.device, non_blocking=True)[:, None, None, None]
    places = torch.from_numpy(np.stack([order, order.argsort()])).to(images.device, non_blocking=True)
    rows, matrices = images.index_select(0, places[0]), matrices_of(here, _found(spans, GEOMETRY), size)
    moves = ((GEOMETRY, affine_bilinear),) if bilinear else ((OF_ROWS, affine_rows), (OF_PIXELS, affine))
    for names, move in moves:
        if found := _found(spans, names):
            whole = _whole(found)
            rows[whole] = move(rows[whole], matrices[whole])
    if found := _found(spans, TABLES):
        whole = _whole(found)
        rows[whole] = look_up(rows[whole], torch.cat([TABLES[name](rows[span]) for name, span in found.items()]))
    for name, span in _found(spans, ARITHMETIC).items():
        rows[span] = ARITHMETIC[name](rows[span], sizes[span])
    # Choosing rows copies them whole; index_copy_ looks at each pixel, and takes ten times as long.
    return rows.index_select(0, places[1])


def _found(spans: dict[str, slice], names: Iterable[str]) -> dict[str, slice]:
    return {name: spans[name] for name in names if name in spans}


def _whole(spans: dict[str, slice]) -> slice:
    return slice(min(s.start for s in spans.values()), max(s.stop for s in spans.values()))
