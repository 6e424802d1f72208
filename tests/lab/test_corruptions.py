"""The common corruptions against their formulas, against Pillow and scipy, and at every size."""

from __future__ import annotations

import colorsys
import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch import Tensor

from augury.errors import UsageError
from augury_lab.evaluation.corruptions import (
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    applicable,
    blur,
    digital,
    filters,
    weather,
)

RANDOM = (*GROUPS["noise"], "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform")
"""Those that draw."""
AS_PUBLISHED = ("glass_blur", "frost", "elastic_transform", "saturate")
"""Those whose published severities are not ordered by the distance from the clean image."""


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=draws(seed)).mul(255).round() / 255


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """48 x 3 x 32 x 32: a photograph's pieces."""
    photo = Image.fromarray(load_sample_image("china.jpg")[:384, :512])
    pixels = np.asarray(photo.resize((256, 192), Image.Resampling.BOX))
    pieces = torch.from_numpy(pixels.copy()).permute(2, 0, 1).unfold(1, 32, 32).unfold(2, 32, 32)
    return pieces.permute(1, 2, 0, 3, 4).flatten(0, 1).float() / 255


@pytest.fixture(scope="module")
def large() -> Tensor:
    """2 x 3 x 96 x 96 of the same."""
    photo = Image.fromarray(load_sample_image("china.jpg")[40:424, 100:484]).resize((96, 96), Image.Resampling.BOX)
    one = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1).float() / 255
    return torch.stack([one, one.flip(2)])


def test_groups_hold_each_corruption_once() -> None:
    assert [name for group in GROUPS.values() for name in group] == list(CORRUPTIONS)
    assert list(GROUPS) == ["noise", "blur", "weather", "digital"]
    assert applicable(3) == list(CORRUPTIONS)
    assert set(CORRUPTIONS) - set(applicable(1)) == {"saturate"}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size_any_channels_one_image_eight_bits(name: str) -> None:
    for shape in ((1, 1, 8, 8), (2, 3, 9, 13), (1, 3, 28, 28), (2, 1, 67, 70)):
        images = noise_images(*shape)
        before = images.clone()
        for severity in SEVERITIES:
            made = CORRUPTIONS[name](images, severity, draws(7))
            assert made.shape == images.shape
            assert made.dtype == torch.float32
            levels = made * 255
            assert torch.equal(levels.round() / 255, made), "8 bits"
            assert levels.min() >= 0
            assert levels.max() <= 255
            assert torch.equal(made, CORRUPTIONS[name](images, severity, draws(7)))
        assert torch.equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_come_from_the_generator_alone(name: str) -> None:
    images = noise_images(2, 3, 24, 24)
    torch.manual_seed(0)
    first = CORRUPTIONS[name](images, 4, draws(1))
    torch.manual_seed(1)
    assert torch.equal(first, CORRUPTIONS[name](images, 4, draws(1)))
    assert torch.equal(first, CORRUPTIONS[name](images, 4, draws(2))) == (name not in RANDOM)


@pytest.mark.parametrize("name", RANDOM)
def test_images_of_a_batch_draw_apart(name: str) -> None:
    images = noise_images(1, 3, 32, 32).expand(2, -1, -1, -1).contiguous()
    made = CORRUPTIONS[name](images, 5, draws(1))
    assert not torch.equal(made[0], made[1])


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in AS_PUBLISHED])
def test_distance_from_the_clean_image_grows(name: str, photos: Tensor) -> None:
    distances = [float((CORRUPTIONS[name](photos, s, draws()) - photos).abs().mean()) for s in SEVERITIES]
    # The published severities 3 and 4 of the motion blur, and 2 and 3 of snow, are equally far.
    slack = {"motion_blur": 1e-4, "snow": 1e-3}.get(name, 0.0)
    assert all(b > a - slack for a, b in zip(distances, distances[1:], strict=False)), distances
    assert distances[-1] > 1.5 * distances[0] > 0


def test_severities_out_of_order_are_the_published_ones(photos: Tensor) -> None:
    def likeness(name: str, severity: int) -> float:
        made = CORRUPTIONS[name](photos, severity, draws())
        return float(torch.corrcoef(torch.stack([made.flatten(), photos.flatten()]))[0, 1])

    frost = [likeness("frost", severity) for severity in SEVERITIES]
    assert frost == sorted(frost, reverse=True)
    assert likeness("glass_blur", 4) < likeness("glass_blur", 2)
    grey = CORRUPTIONS["saturate"](photos, 2, draws())
    vivid = CORRUPTIONS["saturate"](photos, 5, draws())
    ranges = [float((x.amax(1) - x.amin(1)).mean()) for x in (grey, photos, vivid)]
    assert ranges == sorted(ranges)


def test_photographs_get_the_strengths_of_photographs(large: Tensor) -> None:
    small = large[..., ::2, ::2].contiguous()
    for name in ("gaussian_noise", "contrast", "brightness", "gaussian_blur"):
        near, far = (float((CORRUPTIONS[name](x, 3, draws()) - x).abs().mean()) for x in (small, large))
        assert far > 1.2 * near, name


@pytest.mark.parametrize("severity", [0, 6, 2.5, "3"])
def test_unknown_severity_is_refused(severity: int) -> None:
    with pytest.raises(UsageError, match=r"severity must be one of 1, 2, 3, 4, 5, got"):
        CORRUPTIONS["fog"](noise_images(1, 1, 8, 8), severity, draws())


def test_tiny_images_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 8x8 pixels, got 7x9"):
        CORRUPTIONS["contrast"](noise_images(1, 1, 7, 9), 1, draws())


# Noise: its moments.


def test_noise_has_the_published_moments() -> None:
    grey = torch.full((40, 3, 32, 32), 0.5)
    gaussian = CORRUPTIONS["gaussian_noise"](grey, 5, draws()) - grey
    assert float(gaussian.std()) == pytest.approx(0.10, rel=0.02)
    assert float(gaussian.mean()) == pytest.approx(0, abs=0.002)
    speckle = CORRUPTIONS["speckle_noise"](grey, 5, draws()) - grey
    assert float(speckle.std()) == pytest.approx(0.2 * 0.5, rel=0.02)
    shot = CORRUPTIONS["shot_noise"](grey, 5, draws()) - grey
    assert float(shot.var()) == pytest.approx(0.5 / 50, rel=0.03)
    impulse = CORRUPTIONS["impulse_noise"](grey, 5, draws())
    for value in (0.0, 1.0):
        assert float((impulse == value).float().mean()) == pytest.approx(0.035, rel=0.06)
    assert float(CORRUPTIONS["speckle_noise"](torch.zeros(1, 1, 8, 8), 5, draws()).sum()) == 0


# Filters, against scipy in float64.


@pytest.mark.parametrize(("border", "scipys"), [("edge", "nearest"), ("symmetric", "reflect"), ("mirror", "mirror")])
def test_gaussian_is_scipys(border: str, scipys: str) -> None:
    images = noise_images(2, 3, 9, 30).double()
    for sigma, truncate in ((0.4, 4.0), (1.0, 4.0), (6.0, 3.0)):
        made = filters.gaussian(images, sigma, border=border, truncate=truncate)
        wanted = ndimage.gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode=scipys, truncate=truncate)
        np.testing.assert_allclose(made, wanted, atol=1e-12)


@pytest.mark.parametrize(("radius", "alias"), [(0.3, 0.4), (1.5, 0.1), (3, 0.1), (10, 0.5)])
def test_defocus_is_a_softened_disk(radius: float, alias: float) -> None:
    kernel = filters.disk(radius, alias)
    assert kernel.sum() == pytest.approx(1)
    reach = len(kernel) // 2
    steps = np.arange(-reach, reach + 1)
    whole = ((steps[:, None] ** 2 + steps**2) <= radius**2).astype(float)
    around = np.arange(-2, 3) if radius > 8 else np.arange(-1, 2)
    weights = np.exp(-(around**2) / (2 * alias**2))
    weights /= weights.sum()
    soft = ndimage.correlate(whole / whole.sum(), np.outer(weights, weights), mode="constant")
    np.testing.assert_allclose(kernel, soft, atol=1e-12)
    images = noise_images(1, 2, 8, 11).double()
    wanted = ndimage.correlate(images.numpy()[0, 1], kernel, mode="mirror")
    np.testing.assert_allclose(filters.correlate(images, kernel)[0, 1], wanted, atol=1e-12)


def test_motion_blur_is_imagemagicks() -> None:
    images, radius, sigma = noise_images(2, 1, 9, 12).double(), 4, 1.5
    angles = torch.tensor([-40.0, 115.0], dtype=torch.float64)
    made = filters.blur_along(images, radius, sigma, angles)
    weights = np.exp(-(np.arange(2 * radius + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for number, angle in enumerate(np.deg2rad(angles.numpy())):
        image, wanted = images[number, 0].numpy(), np.zeros((9, 12))
        for y in range(9):
            for x in range(12):
                for tap, weight in enumerate(weights):
                    row = y + int(np.ceil(tap * np.sin(angle) - 0.5))
                    column = x + int(np.ceil(tap * np.cos(angle) - 0.5))
                    wanted[y, x] += weight * image[min(max(row, 0), 8), min(max(column, 0), 11)]
        np.testing.assert_allclose(made[number, 0], wanted, atol=1e-6)


@pytest.mark.parametrize(("border", "scipys"), [("symmetric", "reflect"), ("mirror", "mirror")])
def test_sampling_is_scipys(border: str, scipys: str) -> None:
    images = noise_images(2, 2, 9, 12).double()
    y, x = (torch.rand(2, 9, 12, generator=draws(s), dtype=torch.float64) * 40 - 14 for s in (1, 2))
    made = filters.sample(images, y, x, border)
    for n in range(2):
        places = np.stack([y[n].numpy(), x[n].numpy()])
        for c in range(2):
            wanted = ndimage.map_coordinates(images[n, c].numpy(), places, order=1, mode=scipys)
            np.testing.assert_allclose(made[n, c], wanted, atol=1e-9)


def test_zoom_magnifies_the_middle() -> None:
    images = noise_images(1, 1, 8, 13).double()
    rows, columns = (3.5 + (np.arange(8) - 3.5) / 1.2), 6 + (np.arange(13) - 6) / 1.2
    wanted = ndimage.map_coordinates(images[0, 0].numpy(), np.meshgrid(rows, columns, indexing="ij"), order=1)
    np.testing.assert_allclose(filters.zoom(images, 1.2)[0, 0], wanted, atol=1e-12)
    np.testing.assert_allclose(filters.zoom(images, 1.0), images, atol=1e-12)


def test_zoom_blur_is_the_mean_of_the_image_and_its_magnifications() -> None:
    images = noise_images(1, 3, 16, 16).double()
    wanted = images + sum(filters.zoom(images, factor) for factor in np.arange(1, 1.11, 0.01))
    np.testing.assert_allclose(blur.zoom_blur(images, 2, draws()), wanted / (len(np.arange(1, 1.11, 0.01)) + 1))


def diamond_square(uniforms: NDArray[np.float64], size: int, decay: float) -> NDArray[np.float64]:
    """One map, pixel by pixel; `uniforms` in the order in which they are drawn."""
    field, step, wobble, drawn = np.zeros((size, size)), size, 100.0, iter(uniforms)

    def put(y: int, x: int, places: list[tuple[int, int]]) -> None:
        mean = sum(field[a % size, b % size] for a, b in places) / 4
        field[y, x] = mean + wobble**2 * (2 * next(drawn) - 1)

    while step >= 2:
        h, grid = step // 2, range(0, size, step)
        for y in grid:
            for x in grid:
                put(y + h, x + h, [(y, x), (y + step, x), (y, x + step), (y + step, x + step)])
        for y in grid:
            for x in grid:
                put(y, x + h, [(y + h, x + h), (y - h, x + h), (y, x), (y, x + step)])
        for y in grid:
            for x in grid:
                put(y + h, x, [(y + h, x + h), (y + h, x - h), (y, x), (y + step, x)])
        step, wobble = h, wobble / decay
    return (field - field.min()) / (field.max() - field.min())


def test_clouds_are_a_diamond_square_fractal() -> None:
    made = filters.plasma(1, 16, 16, 2.5, draws(4))
    again, uniforms, step = draws(4), [], 16
    while step >= 2:
        uniforms += [torch.rand((1, 16 // step, 16 // step), generator=again).flatten() for _ in range(3)]
        step //= 2
    wanted = diamond_square(torch.cat(uniforms).double().numpy(), 16, 2.5)
    np.testing.assert_allclose(made[0, 0], wanted, atol=1e-5)
    cut = filters.plasma(3, 9, 13, 2.0, draws(4))
    assert cut.shape == (3, 1, 9, 13)


# Pixels, against the formulas.


def test_fog_contrast_and_brightness_are_their_formulas() -> None:
    images = noise_images(2, 3, 16, 16)
    x = images.double().numpy()
    clouds = filters.plasma(2, 16, 16, 2.5, draws(3)).double().numpy()
    most = x.max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(weather.fog(images, 3, draws(3)), (x + 0.75 * clouds) * most / (most + 0.75), atol=1e-6)
    means = x.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(digital.contrast(images, 4, draws()), (x - means) * 0.3 + means, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_brightness_and_saturation_are_those_of_hsv(severity: int) -> None:
    images = noise_images(1, 3, 8, 8)
    images[:, :, 0, 0], images[:, :, 0, 1], images[:, :, 0, 2] = 0.0, 0.4, 1.0
    raised = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    factor, shift = ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))[severity - 1]
    bright, vivid = np.zeros((3, 8, 8)), np.zeros((3, 8, 8))
    for y in range(8):
        for x in range(8):
            h, s, v = colorsys.rgb_to_hsv(*images[0, :, y, x].double().tolist())
            bright[:, y, x] = colorsys.hsv_to_rgb(h, s, min(v + raised, 1))
            vivid[:, y, x] = colorsys.hsv_to_rgb(h, min(s * factor + shift, 1), v)
    np.testing.assert_allclose(weather.brightness(images, severity, draws())[0], bright, atol=1e-6)
    np.testing.assert_allclose(digital.saturate(images, severity, draws())[0], vivid, atol=1e-6)


def eight_bit(image: Tensor) -> Image.Image:
    pixels = image.mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows(severity: int, photos: Tensor) -> None:
    images = photos[:8, :, :31]
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    made = CORRUPTIONS["pixelate"](images, severity, draws())
    for image, found in zip(images, made, strict=True):
        less = eight_bit(image).resize((int(32 * share), int(31 * share)), Image.Resampling.BOX)
        wanted = np.asarray(less.resize((32, 31), Image.Resampling.BOX)).transpose(2, 0, 1)
        # Pillow rounds after each side.
        np.testing.assert_allclose(found * 255, wanted, atol=1.01)


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (3, 58), (5, 40)])
def test_jpeg_is_what_pillows_files_keep(severity: int, quality: int, photos: Tensor) -> None:
    for images, allowed in ((photos[:24, :, :29], 1.5), (photos[:24, :1], 0.3)):
        made = CORRUPTIONS["jpeg_compression"](images, severity, draws()) * 255
        away, wanted = [], []
        for image in images:
            file = io.BytesIO()
            eight_bit(image).save(file, "JPEG", quality=quality)
            pixels = torch.from_numpy(np.asarray(Image.open(file)).copy()).float()
            wanted.append(pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))
        away = (torch.stack(wanted) - images * 255).abs().mean()
        assert float((made - torch.stack(wanted)).abs().mean()) < allowed
        assert float((made - images * 255).abs().mean()) == pytest.approx(float(away), rel=0.03)


# Geometry.


def test_affine_map_moves_three_points() -> None:
    height, width, jitter = 20, 26, 3.0
    y, x = digital._affine_places(5, height, width, jitter, draws(8))
    moves = filters.uniform((5, 3, 2), -jitter, jitter, draws(8)).double()
    assert float(moves.abs().max()) > 2
    middle, reach = np.array([13, 10]), 6
    points = torch.from_numpy(np.array([middle + reach, middle + (reach, -reach), middle - reach]))
    # The places are linear in the pixel, so three of them say what is looked up anywhere.
    for n in range(5):
        origin = torch.stack([x[n, 0, 0], y[n, 0, 0]]).double()
        right = torch.stack([x[n, 0, 1], y[n, 0, 1]]).double() - origin
        down = torch.stack([x[n, 1, 0], y[n, 1, 0]]).double() - origin
        for point, move in zip(points, moves[n], strict=True):
            there = point + move
            found = origin + there[0] * right + there[1] * down
            np.testing.assert_allclose(found, point, atol=1e-3)


def sequential(side: int, reach: int, rounds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The original's glass: from pixel to pixel."""
    places = np.arange(side * side).reshape(side, side)
    for _ in range(rounds):
        for y in range(side - reach, reach, -1):
            for x in range(side - reach, reach, -1):
                dx, dy = rng.integers(-reach, reach, 2)
                there = y + dy, x + dx
                places[y, x], places[there] = places[there], places[y, x]
    return places


def test_glass_moves_pixels_as_far_as_one_after_the_other() -> None:
    side = 32

    def moved(places: NDArray[np.int64]) -> tuple[float, float]:
        y, x = np.divmod(np.arange(side * side), side)
        rows, columns = np.divmod(places.reshape(-1, side * side), side)
        distance = np.hypot(rows - y, columns - x)
        return float(distance.mean()), float((distance > 0).mean())

    rng = np.random.default_rng(0)
    for reach, rounds in ((1, 1), (2, 1), (1, 2)):
        places = blur._shuffled(6, (side, side), reach, rounds, draws(2)).numpy()
        assert (np.sort(places) == np.arange(side * side)).all(), "a permutation"
        one_by_one = np.stack([sequential(side, reach, rounds, rng).ravel() for _ in range(6)])
        np.testing.assert_allclose(moved(places), moved(one_by_one), rtol=0.06)


def test_ice_is_half_bright_and_grows_in_needles() -> None:
    ice = weather._ice(4, 64, 64, draws())
    assert float(ice.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(ice.std()) > 0.15
    white = CORRUPTIONS["frost"](torch.zeros(2, 3, 32, 32), 5, draws())
    red, _, blue = white.mean((0, 2, 3)).tolist()
    assert blue > red
