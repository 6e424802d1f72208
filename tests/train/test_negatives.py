"""Negative augmentations: whole batches against PIL and written-out formulas, and what they refuse."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import ImageFilter, ImageOps
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_image
from tests.train.words import (
    apply,
    assert_keeps_shape_and_input,
    assert_own_uniforms_alone,
    assert_reads_nothing_back,
    frame,
    noise,
    word,
)
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from augury.distributed import Ranks
from augury.errors import UsageError
from augury_train.data.loader import Order
from augury_train.data.memory import MemoryFeed
from augury_train.data.pipeline import Pipeline, parse
from augury_train.data.source import ArraySource
from augury_train.data.splits import Split, Splits
from augury_train.data.stream import StreamFeed
from augury_train.data.transforms import Frame, Uniforms
from augury_train.data.view import DataSet, ImageFormat

WORDS = ["rotate90", "vertical_flip", "blur", "sobel", "jigsaw"]
CPU = torch.device("cpu")


@cache
def real(channels: int) -> Tensor:
    """Handwritten digits, or squares of a photograph."""
    if channels == 1:
        return torch.from_numpy((load_digits().images[:40] * 15).astype(np.uint8))[:, None]
    photograph = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)
    return photograph.unfold(1, 40, 61).unfold(2, 40, 57).permute(1, 2, 0, 3, 4).flatten(0, 1)


IMAGES = [lambda: real(1), lambda: real(3), lambda: noise(20, 3, 32, 32), lambda: noise(9, 1, 2, 2)]


@pytest.mark.parametrize("make", IMAGES)
def test_vertical_flip_mirrors_every_image(make: Callable[[], Tensor]) -> None:
    images = make()
    found = apply("vertical_flip", images, torch.rand(len(images), 0))
    for image, made in zip(images, found, strict=True):
        assert torch.equal(F.pil_to_tensor(ImageOps.flip(F.to_pil_image(image))), made)


@pytest.mark.parametrize("make", IMAGES)
def test_turns_are_pils_three_and_equally_likely(make: Callable[[], Tensor]) -> None:
    images = make()
    for number, angle in enumerate((90, 180, 270)):
        drawn = torch.full((len(images), 1), (number + 0.5) / 3)
        for image, made in zip(images, apply("rotate90", images, drawn), strict=True):
            assert torch.equal(F.pil_to_tensor(F.to_pil_image(image).rotate(angle)), made)


def blurred(image: Tensor, sigma: float) -> Tensor:
    return F.pil_to_tensor(F.to_pil_image(image).filter(ImageFilter.GaussianBlur(sigma)))


@pytest.mark.parametrize("make", [*IMAGES, lambda: noise(9, 3, 1, 1), lambda: noise(60, 3, 7, 4)])
def test_the_blur_is_pils_to_the_bit(make: Callable[[], Tensor]) -> None:
    images = make()
    drawn = torch.rand(len(images), 1)
    drawn[0], drawn[-1] = 0.0, 1 - 2**-24
    for image, share, made in zip(images, drawn[:, 0].double(), apply("blur", images, drawn), strict=True):
        assert torch.equal(blurred(image, 0.6 + 1.4 * float(share)), made)


def test_the_blur_is_pils_at_every_deviation_and_at_the_ends_of_the_levels() -> None:
    drawn = torch.linspace(0, 1 - 2**-24, 700)[:, None]
    images = (torch.rand(1, 1, 9, 9) < 0.5).byte().mul(255).expand(700, -1, -1, -1)
    found = apply("blur", images, drawn)
    for share, made in zip(drawn[:, 0].double(), found, strict=True):
        assert torch.equal(blurred(images[0], 0.6 + 1.4 * float(share)), made)
    for level in (0, 255):
        assert (apply("blur", torch.full_like(images, level), drawn) == level).all()


def test_the_blur_is_near_a_gaussian() -> None:
    images = real(3)
    drawn = torch.rand(len(images), 1)
    found = apply("blur", images, drawn)
    for image, share, made in zip(images, drawn[:, 0].tolist(), found, strict=True):
        true = ndimage.gaussian_filter(image.double().numpy(), 0.6 + 1.4 * share, axes=(1, 2), mode="nearest")
        assert np.abs(made.double().numpy() - true).mean() < 1.5


@pytest.mark.parametrize("make", [*IMAGES, lambda: noise(9, 3, 1, 1), lambda: noise(20, 1, 3, 8)])
def test_edges_are_sobels_gradients(make: Callable[[], Tensor]) -> None:
    images = make()
    found = apply("sobel", images, torch.rand(len(images), 0))
    levels = images.long().numpy()
    across = ndimage.convolve(levels, np.array([1, 2, 1]).reshape(1, 1, 3, 1), mode="nearest")
    down = ndimage.convolve(levels, np.array([1, 2, 1]).reshape(1, 1, 1, 3), mode="nearest")
    difference = np.array([1, 0, -1])
    gradient_x = ndimage.convolve(across, difference.reshape(1, 1, 1, 3), mode="nearest")
    gradient_y = ndimage.convolve(down, difference.reshape(1, 1, 3, 1), mode="nearest")
    squares = gradient_x**2 + gradient_y**2
    # The largest whole number whose square, times 2 and 64, does not exceed the squares.
    levels = np.arange(256)
    expected = np.searchsorted(128 * levels**2, squares, side="right") - 1
    assert np.array_equal(found.numpy(), expected)


def test_edges_of_a_step() -> None:
    image = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    image[..., 3:] = 255
    made = apply("sobel", image, torch.rand(1, 0))[0, 0]
    # 255 * 4 to both sides of the step, over 8, over the root of two: 90.2.
    assert (made == torch.tensor([0, 0, 90, 90, 0, 0])).all()


def numbered(side: int = 6) -> Tensor:
    """An image without any symmetry."""
    return torch.arange(side * side, dtype=torch.uint8).view(1, 1, side, side).expand(1, 3, -1, -1)


def patches(image: Tensor) -> list[bytes]:
    half = image.shape[-1] // 2
    return [image[:, y : y + half, x : x + half].numpy().tobytes() for y in (0, half) for x in (0, half)]


def test_jigsaw_makes_every_order_but_the_original_one_equally_often() -> None:
    image, n = numbered(), 23 * 200
    found = apply("jigsaw", image.expand(n, -1, -1, -1), torch.rand(n, 1))
    single = word("jigsaw", image).single(frame(image))
    one = F.to_pil_image(image[0])
    torch.manual_seed(1)
    by_one = torch.stack([F.pil_to_tensor(single(one)) for _ in range(n)])
    mine = patches(image[0])
    for made in (found, by_one):
        orders = Counter(tuple(mine.index(patch) for patch in patches(x)) for x in made)
        assert set(orders) == set(permutations(range(4))) - {(0, 1, 2, 3)}
        statistic = sum((count - 200) ** 2 / 200 for count in orders.values())
        assert (statistic - 22) / np.sqrt(2 * 22) < 4.5


@pytest.mark.parametrize("ends", [0.0, 1 - 2**-24])
def test_jigsaw_never_restores_the_image(ends: float) -> None:
    image = noise(1, 3, 8, 8)
    assert not torch.equal(apply("jigsaw", image, torch.tensor([[ends]])), image)


def test_jigsaw_acts_on_normalised_images_before_cutout() -> None:
    image = numbered(8).float()
    made = apply("jigsaw", image, torch.tensor([[0.0]]))
    assert made.dtype == torch.float32
    # The first of the orders swaps the last two patches.
    assert torch.equal(made[..., :4, :], image[..., :4, :])
    assert torch.equal(made[..., 4:, :4], image[..., 4:, 4:])
    of = Frame((8, 8), (0.5,) * 3)
    pipeline = Pipeline(parse(["flip", "jigsaw", "cutout:4"], "data.base", of), of, (0.25,) * 3, CPU)
    assert pipeline.last_draws == 3
    assert [t.last for t in parse(WORDS, "data.base", of)] == [False, False, False, False, True]


def test_odd_images_that_are_cropped_later_keep_their_last_row() -> None:
    image = noise(1, 3, 7, 7)
    jigsaw = parse(["jigsaw"], "data.base", Frame((4, 4), (0.5,) * 3))[0]
    drawn = torch.tensor([[0.9]])
    made = jigsaw(image, Uniforms(drawn, drawn), Frame((4, 4), (0.5,) * 3))
    assert torch.equal(made[..., 6, :], image[..., 6, :])
    assert torch.equal(made[..., 6], image[..., 6])
    assert not torch.equal(made, image)
    torch.manual_seed(0)
    one = jigsaw.single(Frame((4, 4), (0.5,) * 3))(F.to_pil_image(image[0]))
    assert torch.equal(F.pil_to_tensor(one)[:, 6], image[0, :, 6])


@pytest.mark.parametrize("text", WORDS)
def test_a_row_depends_on_its_own_uniforms_alone(text: str) -> None:
    assert_own_uniforms_alone(text, noise(30, 3, 12, 12))


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 2, 2), (1, 8, 8), (3, 34, 34)], ids=str)
@pytest.mark.parametrize("text", WORDS)
def test_images_keep_shape_and_type_and_are_not_written_to(text: str, shape: tuple[int, int, int]) -> None:
    images = noise(12, *shape)
    assert_keeps_shape_and_input(text, images)


@pytest.mark.parametrize("text", WORDS)
def test_nothing_is_read_back_from_the_device(text: str) -> None:
    assert_reads_nothing_back(text)


@pytest.mark.parametrize("text", WORDS)
def test_the_single_form_travels_to_workers_and_makes_what_a_batch_makes(text: str) -> None:
    for channels in (1, 3):
        image, n = noise(1, channels, 6, 6), 120
        single = pickle.loads(pickle.dumps(word(text, image).single(frame(image))))
        one = F.to_pil_image(image[0])
        before = one.tobytes()
        torch.manual_seed(3)
        by_one = torch.stack([F.pil_to_tensor(single(one)) for _ in range(n)])
        assert one.tobytes() == before
        found = apply(text, image.expand(n, -1, -1, -1), torch.rand(n, word(text, image).draws))
        if text == "blur":
            error = ((found.double().var(0) + by_one.double().var(0)) / n).sqrt()
            assert ((found.double().mean(0) - by_one.double().mean(0)).abs() <= 5 * error).all()
        else:
            outcomes = {made.numpy().tobytes() for made in found}
            assert outcomes == {made.numpy().tobytes() for made in by_one}
            assert len(outcomes) == {"rotate90": 3, "jigsaw": 23}.get(text, 1)


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("jigsaw", (9, 9), "must cut both sides in halves, got 9 x 9 pixels. Set data.image_size to an even number."),
        ("jigsaw", (8, 7), "must cut both sides in halves, got 8 x 7 pixels. Set data.image_size to an even number."),
        ("rotate90", (6, 8), "must have squares to turn, got 6 x 8 pixels. Leave it out."),
    ],
)
def test_images_that_a_word_cannot_make_are_refused_when_it_is_read(
    text: str, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["flip", text], "data.augmented", Frame(size, (0.5,) * 3))
    assert str(caught.value) == f"data.augmented: transform `{text}` {message}"


def data(count: int = 24, side: int = 8) -> DataSet:
    drawn = np.random.default_rng(0)
    source = ArraySource(drawn.integers(0, 256, (count, 3, side, side), dtype=np.uint8), np.zeros(count, dtype=int))
    form = ImageFormat(3, side, side, "bilinear", (0.5,) * 3, (0.25,) * 3)
    return DataSet(Splits(Split(source, torch.arange(count)), None, None), ["a"], form, [])


@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_both_loaders_put_the_words_at_their_places(kind: str) -> None:
    images = data()
    of, words = images.format.frame, ["sobel", "vertical_flip", "jigsaw", "cutout:4"]
    feed = MemoryFeed(images, CPU) if kind == "memory" else StreamFeed(images, CPU, 0)
    shares = {"base": 0.5, "augmented": 0.5}
    pipelines = {
        name: Pipeline(parse(text, name, of), of, images.format.std, CPU)
        for name, text in {"base": [], "augmented": words}.items()
    }
    order = Order(24, 8, 1, shares, 4, Ranks(), 1)
    originals = images.pixels(images.splits.train)
    seen = Counter()
    for batch in feed.training(order, pipelines).epoch(0):
        for row, index, pipeline in zip(batch.images, batch.indices, batch.pipeline, strict=True):
            plain = originals[index][None]
            if pipeline == 1:
                plain = apply("sobel", plain, torch.rand(1, 0)).flip(-2)
            plain = ((plain[0].float() / 255 - 0.5) / 0.25).round(decimals=3)
            seen[int(pipeline)] += 1
            if pipeline == 0:
                torch.testing.assert_close(row, plain, atol=2e-3, rtol=0)
                continue
            # Each patch is one of the image's others, but for the zeros of cutout.
            half = [plain[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
            mine = [row[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)]
            fits = [[bool((((a - b).abs() < 2e-3) | (a == 0)).all()) for b in half] for a in mine]
            assert all(any(row) for row in fits)
            assert any(all(fits[i][p[i]] for i in range(4)) for p in list(permutations(range(4)))[1:])
            assert (row == 0).any()
    assert seen == {0: 12, 1: 12}
