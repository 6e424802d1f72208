"""Words of a pipeline, tried on images by themselves, and what is true of all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from augury_train.data.pipeline import parse
from augury_train.data.transforms import Frame, Transform, Uniforms


def frame(images: Tensor) -> Frame:
    return Frame((images.shape[-2], images.shape[-1]), (0.5,) * images.shape[1])


def word(text: str, images: Tensor) -> Transform:
    return parse([text], "data.base", frame(images))[0]


def apply(text: str, images: Tensor, drawn: Tensor) -> Tensor:
    return word(text, images)(images, Uniforms(drawn, drawn), frame(images))


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def assert_own_uniforms_alone(text: str, images: Tensor) -> None:
    """What a row becomes depends on that row's image and uniforms."""
    n = len(images)
    drawn = torch.rand(n, word(text, images).draws)
    found, order = apply(text, images, drawn), torch.randperm(n)
    assert torch.equal(apply(text, images[order], drawn[order]), found[order])
    for i in range(0, n, 5):
        assert torch.equal(apply(text, images[i : i + 1], drawn[i : i + 1])[0], found[i])


def assert_keeps_shape_and_input(text: str, images: Tensor) -> None:
    """Shape and dtype stay, of no images too, and the input is not written to."""
    before, chosen = images.clone(), word(text, images)
    for n in (len(images), 1, 0):
        found = apply(text, images[:n], torch.rand(n, chosen.draws))
        assert (found.shape, found.dtype) == ((n, *images.shape[1:]), torch.uint8)
    assert torch.equal(images, before), "the images are used for other views, too"


def assert_reads_nothing_back(text: str) -> None:
    """A meta tensor has no values: reading one, or a shape that depends on one, raises."""
    images = torch.empty(40, 3, 8, 8, dtype=torch.uint8, device="meta")
    chosen = word(text, images)
    drawn = torch.rand(40, chosen.draws)
    assert chosen(images, Uniforms(drawn, drawn.to("meta")), frame(images)).shape == images.shape
