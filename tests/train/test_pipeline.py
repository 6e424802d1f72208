"""A pipeline's words: how they are read, in which order they act, and where the normalisation stands."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from augury.errors import UsageError
from augury_train.data.pipeline import Chain, Pipeline, parse
from augury_train.data.transforms import Frame, Uniforms

CPU = torch.device("cpu")
MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.2, 0.3)
FRAME = Frame((9, 9), MEAN)
GREY = Frame((9, 9), (0.4,))


def pipeline(*words: str, of: Frame = FRAME) -> Pipeline:
    return Pipeline(parse(words, "data.base", of), of, STD[: len(of.mean)], CPU)


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def normal(images: Tensor, of: Frame = FRAME) -> Tensor:
    """Normalised in float64."""
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (of.mean, STD[: len(of.mean)]))
    return (images.double() / 255 - mean) / std


def by_hand(words: tuple[str, ...], images: Tensor, drawn: Tensor) -> Tensor:
    """One word after the other, each with its own columns, normalised once no word for 8-bit images is left."""
    found, at = images, 0
    transforms = parse(words, "data.base", FRAME)
    for number, transform in enumerate(transforms):
        if found.dtype == torch.uint8 and all(t.last for t in transforms[number:]):
            found = normal(found)
        columns = drawn[:, at : at + transform.draws]
        found, at = transform(found, Uniforms(columns, columns), FRAME), at + transform.draws
    return normal(found) if found.dtype == torch.uint8 else found


SEQUENCES = [
    *permutations(["crop:2", "flip", "cutout:3", "random_erasing:1"]),
    *permutations(["random_resized_crop:0.3", "cutout:4", "reflect_crop:2"]),
    ("cutout:2", "flip", "cutout:3"),
    ("flip", "flip"),
    ("cutout:2",),
    (),
]


@pytest.mark.parametrize("words", SEQUENCES, ids=" ".join)
def test_words_act_in_the_order_they_stand_in(words: tuple[str, ...]) -> None:
    images, made = noise(12, 3, 9, 9), pipeline(*words)
    drawn = torch.rand(12, made.draws + 3)
    found = made(images, Uniforms(drawn, drawn))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), by_hand(words, images, drawn), rtol=1e-4, atol=1e-5)


def test_normalisation_stands_behind_the_last_word_for_8_bit_images() -> None:
    white, zeros = torch.full((4, 3, 9, 9), 255, dtype=torch.uint8), torch.zeros(4, 4)
    # A square blanked after normalising is zero; blanked before, it is the mean as an 8-bit level.
    behind = pipeline("crop:2", "cutout:4")(white, Uniforms(zeros, zeros))
    assert (behind[:, :, :2, :2] == 0).all()
    before = pipeline("cutout:4", "crop:2")(white, Uniforms(zeros, zeros))
    blank = normal(torch.tensor([51, 128, 178])[:, None, None])
    torch.testing.assert_close(before[:, :, 2:4, 2:4].double(), blank.expand(4, 3, 2, 2), rtol=1e-4, atol=1e-5)
    black = normal(torch.zeros(3, 1, 1))
    torch.testing.assert_close(before[:, :, 0, 0].double(), black[:, 0, 0].expand(4, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", SEQUENCES, ids=" ".join)
def test_draws_behind_the_normalisation_are_counted_apart(words: tuple[str, ...]) -> None:
    transforms, made = parse(words, "data.base", FRAME), pipeline(*words)
    tail = 0
    while tail < len(transforms) and transforms[-tail - 1].last:
        tail += 1
    assert made.draws == sum(t.draws for t in transforms)
    assert made.last_draws == sum(t.draws for t in transforms[len(transforms) - tail :])
    # What workers leave to the device is exactly that tail.
    images, drawn = noise(5, 3, 9, 9), torch.rand(5, made.draws)
    first = made.draws - made.last_draws
    head = pipeline(*words[: len(words) - tail])
    halfway = (head(images, Uniforms(drawn, drawn)).double() * torch.tensor(STD)[:, None, None]).add(
        torch.tensor(MEAN)[:, None, None]
    ) * 255
    finished = made.finish(halfway.round().to(torch.uint8), Uniforms(drawn, drawn).columns(first, made.last_draws))
    torch.testing.assert_close(finished, made(images, Uniforms(drawn, drawn)))


@pytest.mark.parametrize("of", [FRAME, GREY])
@pytest.mark.parametrize("kept", [9, 10, 11, 12, 14, 16, 20])
def test_images_that_are_kept_larger_are_cropped_where_torchvision_crops_them(of: Frame, kept: int) -> None:
    images, none = noise(3, len(of.mean), kept, kept), Uniforms(torch.rand(3, 1), torch.rand(3, 1))
    middle = v2.functional.center_crop(images, [9, 9])
    expected = normal(middle, of)
    made = pipeline(of=of)
    for found in (made(images, none), made.normalise(images), made.finish(images, none)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    image = v2.functional.to_pil_image(images[0])
    assert torch.equal(made.single()(image), middle[0])


def test_random_resized_crop_draws_from_all_that_is_kept() -> None:
    images = torch.zeros(200, 3, 15, 15, dtype=torch.uint8)
    images[:, :, :3] = 255  # Outside of the centre crop.
    made = pipeline("random_resized_crop:0.5")
    drawn = torch.rand(200, made.draws)
    assert made.whole
    assert not pipeline("crop:1").whole
    seen = made(images, Uniforms(drawn, drawn)).flatten(1).amax(1) > 0
    assert 0.3 < seen.float().mean() < 1
    single = made.single()
    image = v2.functional.to_pil_image(images[0])
    assert 0.3 < sum(int(single(image).max()) > 128 for _ in range(200)) / 200 < 1


@pytest.mark.parametrize("of", [FRAME, GREY])
@pytest.mark.parametrize("words", [w for w in SEQUENCES if len(w) != 4], ids=" ".join)
def test_the_single_form_is_8_bit_and_of_the_frame(of: Frame, words: tuple[str, ...]) -> None:
    chain = pipeline(*words, of=of).single()
    assert isinstance(chain, Chain)
    image = v2.functional.to_pil_image(noise(len(of.mean), 13, 13))
    before = image.tobytes()
    found = chain(image)
    assert (found.dtype, found.shape) == (torch.uint8, (len(of.mean), 9, 9))
    assert image.tobytes() == before, "the image is used for other views, too"


def test_a_frame_that_is_no_square() -> None:
    of = Frame((6, 10), MEAN)
    images, made = noise(4, 3, 6, 10), pipeline("crop:1", "reflect_crop:2", "cutout:3", of=of)
    drawn = torch.rand(4, made.draws)
    assert made(images, Uniforms(drawn, drawn)).shape == (4, 3, 6, 10)
    assert made.single()(v2.functional.to_pil_image(images[0])).shape == (3, 6, 10)
    made = pipeline("random_resized_crop", of=of)
    drawn = torch.rand(4, made.draws)
    assert made(images, Uniforms(drawn, drawn)).shape == (4, 3, 6, 10)


@pytest.mark.parametrize(
    ("word", "same"),
    [
        ("crop:4", "crop:padding=4"),
        ("crop: 4", "crop:4"),
        ("random_erasing", "random_erasing:0.25"),
        ("random_resized_crop", "random_resized_crop:min_scale=0.08"),
    ],
)
def test_the_first_argument_needs_no_name_and_defaults_none(word: str, same: str) -> None:
    assert parse([word], "data.base", FRAME) == parse([same], "data.base", FRAME)


KNOWN = (
    "augmix, autoaugment, blur, color_jitter, crop, cutout, flip, jigsaw, lighting, randaugment, randaugment_ra, "
    "random_erasing, random_resized_crop, reflect_crop, rotate90, severe, sobel, trivialaugment, vertical_flip"
)
CUTOUT = "Write cutout:N, N its size."


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cutuot:2", f"unknown transform `cutuot`. Known: {KNOWN}. Did you mean `cutout`?"),
        ("", f"unknown transform ``. Known: {KNOWN}."),
        ("crop", "transform `crop`: argument `padding` must be given, got nothing. Write crop:N, N its padding."),
        ("crop:", "transform `crop:` ends in a colon. Write crop:N, N its padding."),
        ("flip:", "transform `flip:` ends in a colon. Write flip alone."),
        ("crop:0", "transform `crop`: argument `padding` must be > 0, got 0. Write crop:N, N its padding."),
        ("crop:-1", "transform `crop`: argument `padding` must be > 0, got -1. Write crop:N, N its padding."),
        ("cutout:x", "transform `cutout`: argument `size` must be a whole number, got 'x'. " + CUTOUT),
        ("cutout:1.5", "transform `cutout`: argument `size` must be a whole number, got 1.5. " + CUTOUT),
        ("flip:3", "transform `flip` has no arguments, got `3`. Write flip alone."),
        ("flip:p=3", "transform `flip` has no arguments, got `p=3`. Write flip alone."),
        ("crop:2,3", "transform `crop:2,3`: `3` must be argument=value. Write crop:N, N its padding."),
        ("crop:2,padding=3", "transform `crop:2,padding=3` must set `padding` once. Write crop:N, N its padding."),
        (
            "random_erasing:2",
            "transform `random_erasing`: argument `p` must be <= 1, got 2. Set it with random_erasing:p=0.25.",
        ),
        (
            "reflect_crop:9",
            "transform `reflect_crop:9` must pad by less than the image's side, 9. Set it with reflect_crop:1.",
        ),
        (
            "crop:2,size=3",
            "transform `crop`: unknown argument `size`. Arguments: padding. Write crop:N, N its padding.",
        ),
    ],
)
def test_wrong_words_are_refused_with_a_way_out(word: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["flip", word], "data.augmented", FRAME)
    assert str(caught.value) == f"data.augmented: {message}"


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse(["crop", "flip", "turn", "cutout:size=0,pad=1", "reflect_crop:9"], "data.base", FRAME)
    lines = str(caught.value).splitlines()
    told = ["`crop`: argument `padding`", "`turn`", "argument `size`", "argument `pad`", "`reflect_crop:9`"]
    assert len(lines) == len(told)
    for line, what in zip(lines, told, strict=True):
        assert line.startswith("data.base: ")
        assert what in line


def test_the_largest_mirrored_border_is_one_pixel_short_of_the_side() -> None:
    made = pipeline("reflect_crop:8")
    drawn = torch.tensor([[0.0, 0.999]])
    assert made(noise(1, 3, 9, 9), Uniforms(drawn, drawn)).shape == (1, 3, 9, 9)
