"""The words that follow a policy: whole batches against torchvision on one PIL image at a time."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from tests.train.words import apply, assert_keeps_shape_and_input, assert_own_uniforms_alone, frame, word
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from augury.errors import UsageError
from augury_train.data.pipeline import parse
from augury_train.data.transforms import Frame

WORDS = [
    "autoaugment:cifar10",
    "autoaugment:imagenet",
    "autoaugment:svhn",
    "randaugment",
    "randaugment:n=3,m=30",
    "trivialaugment",
    "augmix",
    "augmix:10",
    "color_jitter:0.4",
]
Outcomes = dict[bytes, float]
"""What an image can become, and with which probability."""


def noise(*shape: int) -> Tensor:
    """Colours that differ between images, and between places in each."""
    return (torch.rand(shape) * 200 * torch.rand(shape[0], shape[1], 1, 1) + 55 * torch.rand(shape[0], 1, 1, 1)).byte()


def copies(text: str, image: Tensor, n: int) -> Tensor:
    return apply(text, image.expand(n, -1, -1, -1), torch.rand(n, word(text, image[None]).draws))


def ops_of(policy: v2.Transform, image: Image.Image, bins: int) -> dict[str, list[list[float]]]:
    """By op, the magnitudes of each level, both signs; [[0.0]] for ops without one."""
    found = {}
    for name, (function, signed) in policy._AUGMENTATION_SPACE.items():
        levels = function(bins, image.height, image.width)
        sizes = [0.0] if levels is None else [float(level) for level in levels]
        found[name] = [[size, -size] if signed else [size] for size in sizes]
    return found


def outcome(policy: v2.Transform, image: Image.Image, name: str, size: float) -> Image.Image:
    return policy._apply_image_or_video_transform(image, name, size, policy.interpolation, policy._fill)


def rand_augment(image: Image.Image, n: int, m: int) -> Iterator[tuple[Image.Image, float]]:
    """What torchvision's documentation of RandAugment says can come of an image."""
    if n == 0:
        yield image, 1.0
        return
    policy = v2.RandAugment()
    ops = ops_of(policy, image, 31)
    for name, levels in ops.items():
        sizes = levels[m] if len(levels) > 1 else levels[0]
        for size in sizes:
            for made, probability in rand_augment(outcome(policy, image, name, size), n - 1, m):
                yield made, probability / len(ops) / len(sizes)


def trivial_augment(image: Image.Image) -> Iterator[tuple[Image.Image, float]]:
    policy = v2.TrivialAugmentWide()
    ops = ops_of(policy, image, 31)
    for name, levels in ops.items():
        for sizes in levels:
            for size in sizes:
                yield outcome(policy, image, name, size), 1 / len(ops) / len(levels) / len(sizes)


def auto_augment(image: Image.Image, kind: str) -> Iterator[tuple[Image.Image, float]]:
    policy = v2.AutoAugment(v2.AutoAugmentPolicy(kind))
    ops = ops_of(policy, image, 10)
    for pair in policy._policies:
        made = [(image, 1 / len(policy._policies))]
        for name, chance, level in pair:
            sizes = ops[name][level or 0]
            made = [(one, share * (1 - chance)) for one, share in made] + [
                (outcome(policy, one, name, size), share * chance / len(sizes)) for one, share in made for size in sizes
            ]
        yield from made


POLICIES: list[tuple[str, Callable[[Image.Image], Iterator[tuple[Image.Image, float]]]]] = [
    ("randaugment:n=1,m=0", lambda image: rand_augment(image, 1, 0)),
    ("randaugment:n=1,m=9", lambda image: rand_augment(image, 1, 9)),
    ("randaugment:1", lambda image: rand_augment(image, 1, 9)),
    ("randaugment:n=1,m=30", lambda image: rand_augment(image, 1, 30)),
    ("randaugment", lambda image: rand_augment(image, 2, 9)),
    ("trivialaugment", trivial_augment),
    ("autoaugment:cifar10", lambda image: auto_augment(image, "cifar10")),
    ("autoaugment:imagenet", lambda image: auto_augment(image, "imagenet")),
    ("autoaugment:svhn", lambda image: auto_augment(image, "svhn")),
]


@pytest.mark.parametrize("shape", [(3, 11, 16), (1, 12, 9)], ids=str)
@pytest.mark.parametrize(("text", "outcomes"), POLICIES, ids=[text for text, _ in POLICIES])
def test_images_become_what_torchvision_makes_of_them_and_as_often(
    text: str, outcomes: Callable[[Image.Image], Iterator[tuple[Image.Image, float]]], shape: tuple[int, int, int]
) -> None:
    image, n = noise(1, *shape)[0], 6000
    expected: Outcomes = Counter()
    for made, probability in outcomes(F.to_pil_image(image)):
        expected[F.pil_to_tensor(made).numpy().tobytes()] += probability
    assert sum(expected.values()) == pytest.approx(1)
    found = Counter(made.tobytes() for made in copies(text, image, n).numpy())
    assert not set(found) - set(expected), "an image that torchvision cannot make"
    assert all(expected[made] > 0 for made in found)
    # Pearson's statistic, its rare outcomes counted together.
    rare = [made for made, share in expected.items() if n * share < 5]
    pairs = [(found[made], n * share) for made, share in expected.items() if n * share >= 5]
    if rest := n * sum(expected[made] for made in rare):
        pairs.append((sum(found[made] for made in rare), rest))
    statistic = sum((count - mean) ** 2 / mean for count, mean in pairs)
    freedom = len(pairs) - 1
    assert (statistic - freedom) / math.sqrt(2 * freedom) < 4.5


@pytest.mark.parametrize(
    ("text", "channels", "n"),
    [("augmix", 3, 500), ("augmix:10", 1, 500), ("color_jitter:0.4", 3, 2000), ("color_jitter:1", 1, 2000)],
)
def test_mixtures_and_jitter_have_torchvisions_distribution(text: str, channels: int, n: int) -> None:
    image = noise(1, channels, 7, 8)[0]
    found = copies(text, image, n).double()
    single = word(text, image[None]).single(frame(image[None]))
    one = F.to_pil_image(image)
    expected = torch.stack([F.pil_to_tensor(single(one)) for _ in range(n)]).double()
    # In AugMix torchvision's ops are those for tensors, which cut off where PIL's round and the other way round.
    slack = 0.5 if text.startswith("augmix") else 0.0
    for power in (1, 2):
        a, b = found**power, expected**power
        error = ((a.var(0) + b.var(0)) / n).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + slack * power * 255 ** (power - 1)).all()
    # And of all of the image at once: how far it is from what it was, and how bright it is.
    for measure in (lambda x: (x - image).abs().mean((1, 2, 3)), lambda x: x.mean((1, 2, 3))):
        assert largest_gap(measure(found).numpy(), measure(expected).numpy(), slack) < 1.95


def largest_gap(one: np.ndarray, other: np.ndarray, slack: float = 0.0) -> float:
    """Kolmogorov and Smirnov's statistic of two samples of one size, in units that 1.95 exceeds once in 1,000 times;
    values that differ by `slack` count as equal."""
    at = np.unique(np.concatenate([one, other]))

    def below(sample: np.ndarray, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(np.sort(sample), places, side="right") / len(sample)

    gaps = [below(one, at) - below(other, at + slack), below(other, at) - below(one, at + slack)]
    return float(np.max(gaps) * math.sqrt(len(one) / 2))


def test_augmix_draws_below_its_severity() -> None:
    # At the least magnitude only posterizing and solarizing could change one level, and neither changes this one.
    image = torch.full((3, 8, 8), 160, dtype=torch.uint8)
    assert copies("augmix:1", image, 300).sub(159).le(1).all()
    assert not copies("augmix:2", image, 300).sub(159).le(1).all()


def test_jitter_draws_a_factor_for_each_image() -> None:
    # Neither contrast nor saturation changes an image of one level.
    made = copies("color_jitter:0.3", torch.full((1, 4, 4), 200, dtype=torch.uint8), 5000)
    levels = made[:, 0, 0, 0].double().numpy()
    assert (made == made[:, :, :1, :1]).all()
    assert levels.min() == 140
    assert levels.max() == 255
    uniform = np.clip(np.floor(200 * np.random.default_rng(0).uniform(0.7, 1.3, 5000)), 0, 255)
    assert largest_gap(levels, uniform) < 1.95


@pytest.mark.parametrize("text", WORDS)
def test_a_row_depends_on_its_own_uniforms_alone(text: str) -> None:
    assert_own_uniforms_alone(text, noise(48, 3, 9, 12))


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 2, 3), (3, 33, 20), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("text", WORDS)
def test_images_keep_shape_and_type_and_are_not_written_to(text: str, shape: tuple[int, int, int]) -> None:
    images = noise(20, *shape)
    assert_keeps_shape_and_input(text, images)
    assert not word(text, images).last


@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("ends", [(0.0, 0.0), (1 - 2**-24, 1 - 2**-24), (0.0, 1 - 2**-24)])
def test_the_least_and_the_largest_uniforms(text: str, ends: tuple[float, float]) -> None:
    images = noise(6, 3, 8, 8)
    drawn = torch.tensor(ends).repeat(6, word(text, images).draws)[:, : word(text, images).draws]
    found = apply(text, images, drawn)
    assert found.shape == images.shape


@pytest.mark.parametrize("text", WORDS)
def test_every_column_of_uniforms_counts(text: str) -> None:
    images = noise(300, 3, 8, 8)
    draws = word(text, images).draws
    drawn = torch.rand(300, draws)
    found = apply(text, images, drawn)
    for column in range(draws):
        other = drawn.clone()
        other[:, column] = torch.rand(300)
        assert not torch.equal(apply(text, images, other), found), f"column {column} of {draws} changes nothing"


@pytest.mark.parametrize("text", WORDS)
def test_the_single_form_travels_to_workers_and_draws_from_torch(text: str) -> None:
    for shape in ((3, 10, 8), (1, 10, 8)):
        images = noise(1, *shape)
        one = F.to_pil_image(images[0])
        single = pickle.loads(pickle.dumps(word(text, images).single(frame(images))))
        seen = set()
        for seed in range(12):
            torch.manual_seed(seed)
            made = single(one)
            assert (made.mode, made.size) == (one.mode, one.size)
            torch.manual_seed(seed)
            assert single(one).tobytes() == made.tobytes()
            seen.add(made.tobytes())
        assert len(seen) > 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("autoaugment:mnist", "argument `policy` must be one of 'cifar10', 'imagenet' or 'svhn', got 'mnist'."),
        ("randaugment:0", "argument `n` must be >= 1, got 0."),
        ("randaugment:m=31", "argument `m` must be "),
        ("randaugment:m=-1", "argument `m` must be >= 0, got -1."),
        ("randaugment:k=3", "unknown argument `k`."),
        ("trivialaugment:3", "has no arguments"),
        ("augmix:0", "argument `severity` must be >= 1, got 0."),
        ("augmix:11", "argument `severity` must be <= 10, got 11."),
        ("color_jitter:0", "must be > 0, got 0."),
        ("color_jitter:x", "must be a number, got 'x'."),
    ],
)
def test_wrong_arguments_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse([text], "data.augmented", Frame((8, 8), (0.5,)))
    assert message in str(caught.value)
