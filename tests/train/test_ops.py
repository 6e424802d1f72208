"""Batched ops on 8-bit images against what torchvision makes of one PIL image."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from augury_train.data.ops import NAMES, apply, apply_each

SHAPES = [(1, 1, 1), (3, 1, 1), (1, 7, 4), (3, 9, 13), (3, 2, 5), (3, 3, 3), (1, 28, 28), (3, 32, 32), (3, 33, 40)]
RANGES = {
    "ShearX": (-2.0, 2.0),
    "ShearY": (-2.0, 2.0),
    "TranslateX": (-40.0, 40.0),
    "TranslateY": (-40.0, 40.0),
    "Rotate": (-400.0, 400.0),
    "Brightness": (0.0, 3.0),
    "Contrast": (0.0, 3.0),
    "Color": (0.0, 3.0),
    "Sharpness": (0.0, 3.0),
    "Posterize": (1.0, 9.0),
    "Solarize": (-1.0, 257.0),
}
POLICY = v2.RandAugment()


def noise(n: int, shape: tuple[int, int, int]) -> Tensor:
    """Random images, some of one level, some of few levels."""
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8)
    images[0::5] = images[0::5, :, :1, :1]
    images[1::5] = images[1::5] // 40
    images[2::5] = images[2::5] // 8 + 77
    return images


def magnitudes(name: str, n: int) -> Tensor:
    low, high = RANGES.get(name, (0.0, 1.0))
    drawn = low + (high - low) * torch.rand(n, dtype=torch.float64)
    return drawn.floor() if name == "Posterize" else drawn


def by_pil(image: Tensor, name: str, magnitude: float) -> Tensor:
    """What torchvision's policies do to a PIL image."""
    one = F.to_pil_image(image)
    if name in ("Brightness", "Contrast", "Color", "Sharpness"):
        enhance = {"Brightness": F.adjust_brightness, "Contrast": F.adjust_contrast, "Color": F.adjust_saturation}
        return F.pil_to_tensor(enhance.get(name, F.adjust_sharpness)(one, magnitude))
    if name == "Solarize":
        return F.pil_to_tensor(F.solarize(one, magnitude))
    made = POLICY._apply_image_or_video_transform(one, name, magnitude, POLICY.interpolation, POLICY._fill)
    return F.pil_to_tensor(made)


def all_by_pil(images: Tensor, name: str, sizes: Tensor) -> Tensor:
    return torch.stack([by_pil(image, name, float(size)) for image, size in zip(images, sizes, strict=True)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_each_op_is_pils(name: str, shape: tuple[int, int, int]) -> None:
    images, sizes = noise(40, shape), magnitudes(name, 40)
    before = images.clone()
    found = apply(images, name, sizes)
    assert found.dtype == torch.uint8
    assert torch.equal(found, all_by_pil(images, name, sizes))
    assert torch.equal(images, before), "the images are used for other views, too"


@cache
def real(channels: int) -> Tensor:
    """Handwritten digits, or pieces of a photograph."""
    if channels == 1:
        return torch.from_numpy((load_digits().images[:60] * 15).astype(np.uint8))[:, None]
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    return photograph.unfold(1, 48, 61).unfold(2, 40, 57).permute(1, 2, 0, 3, 4).flatten(0, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_each_op_is_pils_on_real_images(name: str, channels: int) -> None:
    images = real(channels)
    sizes = magnitudes(name, len(images))
    assert torch.equal(apply(images, name, sizes), all_by_pil(images, name, sizes))


SPECIAL = {
    "Rotate": [0, 30, 45, 60, 90, 135, 180, 270, 360, -45, -90, -180],
    "ShearX": [0, 0.25, 0.5, -0.5, 1, -1, 1 / 3],
    "ShearY": [0, 0.25, 0.5, -0.5, 1, -1, 1 / 3],
    "TranslateX": [0, 0.99, -0.99, 1, -1, 5, 6, 7, -200],
    "TranslateY": [0, 0.99, -0.99, 1, -1, 5, 6, 7, -200],
    "Brightness": [0, 1, 0.1, 1.9, 1 / 3],
    "Contrast": [0, 1, 0.1, 1.9, 1 / 3],
    "Color": [0, 1, 0.1, 1.9, 1 / 3],
    "Sharpness": [0, 1, 0.1, 1.9, 1 / 3],
    "Solarize": [0, 1, 127.5, 128, 254.5, 255, 256],
    "Posterize": [1, 2, 3, 4, 5, 6, 7, 8],
}


@pytest.mark.parametrize("shape", [(3, 6, 6), (3, 5, 5), (3, 6, 5), (1, 5, 8)], ids=str)
@pytest.mark.parametrize("name", SPECIAL)
def test_ends_and_ties(name: str, shape: tuple[int, int, int]) -> None:
    sizes = torch.tensor(SPECIAL[name], dtype=torch.float64).repeat_interleave(5)
    images = noise(len(sizes), shape)
    assert torch.equal(apply(images, name, sizes), all_by_pil(images, name, sizes))


def test_no_bits_leave_black() -> None:
    assert not apply(noise(4, (3, 4, 4)), "Posterize", torch.zeros(4)).any()


def test_autocontrast_of_every_range() -> None:
    ramp = torch.arange(256)
    low, high = torch.triu_indices(256, 256)[:, ::13].unbind()
    images = ramp.clamp(low[:, None], high[:, None]).to(torch.uint8)[:, None, None]
    found = apply(images, "AutoContrast", torch.zeros(len(images)))
    for image, made in zip(images, found, strict=True):
        assert made.numpy().tobytes() == ImageOps.autocontrast(Image.fromarray(image[0].numpy())).tobytes()


@pytest.mark.parametrize("pixels", [2, 254, 255, 256, 257, 509, 511, 600, 3000])
def test_equalize_of_few_and_of_many_pixels(pixels: int) -> None:
    images = noise(30, (1, 1, pixels))
    assert torch.equal(apply(images, "Equalize", torch.zeros(30)), all_by_pil(images, "Equalize", torch.zeros(30)))


@pytest.mark.parametrize("name", ["Brightness", "Contrast"])
def test_factors_of_every_level(name: str) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(400, 1, 1, 1)
    factors = torch.linspace(0, 2, 400, dtype=torch.float64)
    assert torch.equal(apply(images, name, factors), all_by_pil(images, name, factors))


def test_grey_of_colours_halfway_between_two_levels() -> None:
    weights = torch.tensor([19595, 38470, 7471])
    colours = torch.cartesian_prod(*[torch.arange(0, 256, step) for step in (1, 1, 3)])
    images = colours[(colours * weights).sum(1) % 65536 == 32768].to(torch.uint8)[:, :, None, None]
    assert len(images) > 50
    zeros = torch.zeros(len(images))
    assert torch.equal(apply(images, "Color", zeros), all_by_pil(images, "Color", zeros))


def test_images_may_be_windows_of_larger_ones() -> None:
    images = noise(30, (3, 20, 22))[:, :, 3:14, 2:15]
    for name in NAMES:
        sizes = magnitudes(name, 30)
        assert torch.equal(apply(images, name, sizes), apply(images.contiguous(), name, sizes)), name


def mixed(n: int) -> tuple[Tensor, Tensor]:
    """Ops and magnitudes for n images, every op among them."""
    ops = torch.arange(n) % len(NAMES)
    ops = ops[torch.randperm(n)]
    sizes = torch.stack([magnitudes(NAMES[op], 1)[0] for op in ops])
    return ops, sizes


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 12)], ids=str)
def test_each_image_gets_its_own_op(shape: tuple[int, int, int]) -> None:
    images, (ops, sizes) = noise(80, shape), mixed(80)
    found = apply_each(images, ops, sizes)
    expected = [apply(images[i : i + 1], NAMES[ops[i]], sizes[i : i + 1])[0] for i in range(80)]
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize("bilinear", [False, True])
def test_a_row_depends_on_its_own_draw_alone(bilinear: bool) -> None:
    images, (ops, sizes) = noise(64, (3, 9, 12)), mixed(64)
    found = apply_each(images, ops, sizes, bilinear)
    order = torch.randperm(64)
    assert torch.equal(apply_each(images[order], ops[order], sizes[order], bilinear), found[order])
    for i in range(0, 64, 7):
        alone = apply_each(images[i : i + 1], ops[i : i + 1], sizes[i : i + 1], bilinear)
        assert torch.equal(alone[0], found[i])


def test_any_subset_of_the_ops_may_be_drawn() -> None:
    images = noise(5, (3, 6, 7))
    for number, name in enumerate(NAMES):
        sizes = magnitudes(name, 5)
        assert torch.equal(apply_each(images, torch.full((5,), number), sizes), apply(images, name, sizes)), name
    empty = torch.zeros(0, dtype=torch.int64)
    assert apply_each(images[:0], empty, empty.double()).shape == (0, 3, 6, 7)


@pytest.mark.parametrize("name", ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"])
def test_bilinear_geometry_is_torchvisions_on_tensors(name: str) -> None:
    images, sizes = noise(60, (3, 17, 22)), magnitudes(name, 60) / 4
    found = apply_each(images, torch.full((60,), NAMES.index(name)), sizes, bilinear=True)
    mode = v2.InterpolationMode.BILINEAR
    for image, size, made in zip(images, sizes.tolist(), found, strict=True):
        expected = POLICY._apply_image_or_video_transform(image, name, size, mode, POLICY._fill)
        differences = (made.int() - expected.int()).abs()
        # Sums of 32-bit products in another order: a level that lies halfway may go either way.
        assert differences.max() <= 1
        assert (differences > 0).float().mean() < 0.01


def test_nothing_is_read_back_from_the_device() -> None:
    # A meta tensor has no values: reading one, or a shape that depends on one, raises.
    ops, sizes = mixed(48)
    for channels in (1, 3):
        images = torch.empty(48, channels, 6, 7, dtype=torch.uint8, device="meta")
        for bilinear in (False, True):
            assert apply_each(images, ops, sizes, bilinear).shape == images.shape
