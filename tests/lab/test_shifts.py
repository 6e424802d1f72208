"""Occlusion, crops and jitter against torchvision's pixels, and at their ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional

from augury.errors import UsageError
from augury_lab.evaluation.shifts import SHIFTS, _resampling


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=draws())


def smooth_images(count: int, channels: int, side: int) -> Tensor:
    return interpolate(noise_images(count, channels, 4, 4), (side, side), mode="bilinear")


@pytest.mark.parametrize("name", SHIFTS)
def test_any_size_and_the_same_seed(name: str) -> None:
    shift = SHIFTS[name]
    for shape in ((1, 1, 8, 8), (3, 3, 9, 13)):
        images = noise_images(*shape)
        before = images.clone()
        for strength in shift.strengths:
            made = shift.apply(images, strength, draws(3))
            assert made.shape == images.shape
            assert made.dtype == torch.float32
            assert float(made.min()) >= 0
            assert float(made.max()) <= 1
            assert torch.equal(made, shift.apply(images, strength, draws(3)))
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", SHIFTS)
def test_distance_grows_with_the_strengths(name: str) -> None:
    images = smooth_images(300, 3, 24)
    distances = [float((SHIFTS[name].apply(images, s, draws()) - images).abs().mean()) for s in SHIFTS[name].strengths]
    assert distances == sorted(distances)
    assert distances[-1] > 1.5 * distances[0] > 0


def test_occlusion_blanks_a_square_with_the_images_own_mean() -> None:
    images = noise_images(200, 3, 16, 20)
    made = SHIFTS["occlusion"].apply(images, 0.25, draws())
    changed = (made != images).any(1)
    assert changed.sum((1, 2)).tolist() == [4 * 4] * 200
    assert torch.allclose(made[changed[:, None].expand_as(made)].view(200, 3, 16).mean(2), images.mean((2, 3)))
    top, left = changed.any(2).float().argmax(1), changed.any(1).float().argmax(1)
    assert (int(top.min()), int(top.max()), int(left.min()), int(left.max())) == (0, 12, 0, 16)


def test_ends_of_the_shares() -> None:
    images = noise_images(3, 3, 12, 12)
    assert torch.equal(SHIFTS["occlusion"].apply(images, 0, draws()), images)
    blank = SHIFTS["occlusion"].apply(images, 1, draws())
    assert torch.allclose(blank, images.mean((2, 3), keepdim=True).expand_as(images))
    assert torch.allclose(SHIFTS["centre_crop"].apply(images, 1, draws()), images)
    assert torch.allclose(SHIFTS["jitter"].apply(images, 0, draws()), images, atol=1e-6)


@pytest.mark.parametrize(("name", "strength"), [("occlusion", 1.1), ("crop", -0.1), ("centre_crop", 2), ("jitter", -1)])
def test_impossible_strengths_are_refused(name: str, strength: float) -> None:
    with pytest.raises(UsageError, match=f"{name}: .* got {strength}"):
        SHIFTS[name].apply(noise_images(1, 1, 8, 8), strength, draws())


def test_centre_crop_magnifies_the_middle() -> None:
    images = noise_images(2, 3, 16, 16)
    wanted = functional.resize(functional.center_crop(images, [8, 8]), [16, 16], antialias=False)
    assert torch.allclose(SHIFTS["centre_crop"].apply(images, 0.5, draws()), wanted, atol=1e-6)


def test_a_box_is_magnified_as_torch_does() -> None:
    row = noise_images(1, 1, 1, 14)
    starts, lengths = torch.tensor([0.0, 3.0, 13.0]), torch.tensor([14.0, 6.0, 1.0])
    weights = _resampling(starts, lengths, 14)
    assert torch.allclose(weights.sum(2), torch.ones(3, 14), atol=1e-6)
    for matrix, start, length in zip(weights, starts.int().tolist(), lengths.int().tolist(), strict=True):
        wanted = interpolate(row[..., start : start + length], (1, 14), mode="bilinear", align_corners=False)
        assert torch.allclose(row[0, 0] @ matrix.T, wanted[0, 0], atol=1e-5)


def test_crop_boxes_have_the_area_and_shape_asked_for() -> None:
    side, least = 40, 0.2
    ramp = torch.linspace(0, 1, side)
    across = ramp.expand(500, 1, side, side)
    boxes = []
    for images in (across, across.mT):
        made = SHIFTS["crop"].apply(images.contiguous(), least, draws(5))
        # The ramp's range within a box says how many pixels it has.
        boxes.append((made.amax((1, 2, 3)) - made.amin((1, 2, 3))) * (side - 1) + 1)
    widths, heights = boxes
    area, aspect = widths * heights / side**2, widths / heights
    assert 0.18 < float(area.min()) < 0.25
    assert 0.95 < float(area.max()) <= 1.001
    assert 0.70 < float(aspect.min()) < 0.8 < 1.25 < float(aspect.max()) < 1.42
    assert float(area.mean()) == pytest.approx(0.6, abs=0.05)
    whole = noise_images(2, 1, 8, 8)
    assert torch.allclose(SHIFTS["crop"].apply(whole, 1.0, draws()), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_is_torchvisions_brightness_contrast_and_saturation(channels: int) -> None:
    images = noise_images(6, channels, 10, 10)
    made = SHIFTS["jitter"].apply(images, 0.8, draws(2))
    factors = 0.2 + 1.6 * torch.rand(6, 3, generator=draws(2))
    for image, found, (bright, contrast, colour) in zip(images, made, factors.tolist(), strict=True):
        wanted = functional.adjust_contrast(functional.adjust_brightness(image, bright), contrast)
        wanted = functional.adjust_saturation(wanted, colour) if channels == 3 else wanted
        assert torch.allclose(found, wanted, atol=2e-3)
