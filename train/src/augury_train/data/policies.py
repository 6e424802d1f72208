"""The words that change colours and shapes by a policy: torchvision's, batched.

The tables of ops, ranges and policies are read from torchvision's own classes, which are the single form, so that both
forms mean the same. Which op an image gets is decided by the host's uniforms; geometry is nearest-neighbour, black
outside, but where a class says otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

from augury_train.data.ops import NAMES, apply_each
from augury_train.data.transforms import Frame, Single, Uniforms, Word, pick

BINS = 31
"""Magnitudes that torchvision's RandAugment and TrivialAugment choose from."""


class RandAugment(Word):
    """`n` random ops, each at magnitude `m` of 30 (`randaugment:n=2,m=9`; Cubuk et al. 2019, arXiv 1909.13719;
    torchvision's RandAugment)."""

    n: int = Field(2, ge=1, le=10, description="ops one after the other")
    m: int = Field(9, ge=0, lt=BINS, description="magnitude, 0 to 30")

    @property
    def draws(self) -> int:
        return 2 * self.n

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        names, table = _table("RandAugment", BINS, *images.shape[-2:])
        for op, sign in _pairs(uniforms.host, self.n):
            chosen = pick(op, len(names))
            images = _apply(images, names, chosen, _strengths(names, table[chosen, self.m], chosen, sign))
        return images

    def single(self, frame: Frame) -> Single:
        return v2.RandAugment(self.n, self.m, BINS)


class TrivialAugment(Word):
    """One random op at a random magnitude (`trivialaugment`; Müller and Hutter 2021, arXiv 2103.10158; torchvision's
    TrivialAugmentWide)."""

    draws: ClassVar[int] = 3

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        names, table = _table("TrivialAugmentWide", BINS, *images.shape[-2:])
        op, level, sign = uniforms.host.unbind(1)
        chosen = pick(op, len(names))
        return _apply(images, names, chosen, _strengths(names, table[chosen, pick(level, BINS)], chosen, sign))

    def single(self, frame: Frame) -> Single:
        return v2.TrivialAugmentWide(BINS)


class AutoAugment(Word):
    """A random one of 25 learned pairs of ops (`autoaugment:cifar10`; Cubuk et al. 2018, arXiv 1805.09501; by
    torchvision's AutoAugment)."""

    policy: Literal["cifar10", "imagenet", "svhn"] = Field("imagenet", description="data set that it was learned on")
    draws: ClassVar[int] = 1 + 2 * 2

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        names, table = _table("AutoAugment", 10, *images.shape[-2:])
        ops, probabilities, levels = _auto_policies(self.policy, tuple(names))
        pair = pick(uniforms.host[:, 0], len(ops))
        for number, (coin, sign) in enumerate(_pairs(uniforms.host[:, 1:], 2)):
            chosen = ops[pair, number]
            strengths = _strengths(names, table[chosen, levels[pair, number]], chosen, sign)
            taken = torch.where(coin <= probabilities[pair, number], chosen, NOTHING)
            images = _apply(images, names, taken, strengths)
        return images

    def single(self, frame: Frame) -> Single:
        return v2.AutoAugment(v2.AutoAugmentPolicy(self.policy))


class AugMix(Word):
    """The image mixed with three chains of one to three random ops (`augmix`; Hendrycks et al. 2019, arXiv 1912.02781;
    torchvision's AugMix, bilinear)."""

    severity: int = Field(3, ge=1, le=10, description="magnitudes are drawn below it, of 10")
    draws: ClassVar[int] = 4 + 3 * (1 + 3 * 3)

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        names, table = _table("AugMix", 10, *images.shape[-2:])
        drawn, device = uniforms.host, images.device
        # Dirichlet(1, 1) is a uniform and its rest, Dirichlet(1, 1, 1) three exponentials over their sum.
        shares = -torch.log1p(-drawn[:, 1:4].double())
        shares = drawn[:, :1] * shares / shares.sum(1, keepdim=True).clamp(min=1e-300)
        weights = torch.cat([1 - drawn[:, :1], shares], dim=1).float().to(device, non_blocking=True)
        mixed = weights[:, 0, None, None, None] * images
        for chain, numbers in enumerate(drawn[:, 4:].unflatten(1, (3, 10)).unbind(1)):
            depth, made = pick(numbers[:, 0], 3) + 1, images
            for place, (op, level, sign) in enumerate(numbers[:, 1:].unflatten(1, (3, 3)).permute(1, 2, 0)):
                chosen = pick(op, len(names))
                strengths = _strengths(names, table[chosen, pick(level, self.severity)], chosen, sign)
                made = _apply(made, names, torch.where(place < depth, chosen, NOTHING), strengths, bilinear=True)
            mixed += weights[:, 1 + chain, None, None, None] * made
        return mixed.clamp_(0, 255).to(torch.uint8)

    def single(self, frame: Frame) -> Single:
        return v2.AugMix(self.severity)


class ColorJitter(Word):
    """Brightness, contrast and saturation each by a random factor of 1 ± `strength`, in random order
    (`color_jitter:0.4`; torchvision's ColorJitter)."""

    strength: float = Field(0.4, gt=0, le=1, description="of each, 0 to 1")
    draws: ClassVar[int] = 6

    def __call__(self, images: Tensor, uniforms: Uniforms, frame: Frame) -> Tensor:
        names = ["Brightness", "Contrast", "Color"]
        factors = 1 + self.strength * (2 * uniforms.host[:, :3].double() - 1)
        for chosen in uniforms.host[:, 3:].argsort(1).unbind(1):
            images = _apply(images, names, chosen, factors.gather(1, chosen[:, None])[:, 0])
        return images

    def single(self, frame: Frame) -> Single:
        return v2.ColorJitter(self.strength, self.strength, self.strength)


NOTHING = -1
"""In place of an op's number: the image stays as it is."""


def _apply(images: Tensor, names: list[str], chosen: Tensor, magnitudes: Tensor, bilinear: bool = False) -> Tensor:
    """Do to each image the op of its number among `names`; chosen and magnitudes are N, on the host."""
    # One entry more, for the number -1.
    numbers = torch.tensor([NAMES.index(name) for name in [*names, "Identity"]])
    return apply_each(images, numbers[chosen], magnitudes, bilinear)


def _pairs(drawn: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """`count` pairs of N uniforms out of N x (2 * count)."""
    return [(drawn[:, 2 * i], drawn[:, 2 * i + 1]) for i in range(count)]


_BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")


def _strengths(names: list[str], values: Tensor, chosen: Tensor, sign: Tensor) -> Tensor:
    """The magnitudes that the ops take, N float64, from the tables' values.

    Args:
        names: of the ops.
        values: N float64, of the tables.
        chosen: N int64, the ops.
        sign: N uniforms; half of the signed ops' values are negated.
    """
    signed = torch.tensor([name in _SIGNED for name in names])[chosen]
    blends = torch.tensor([name in _BLENDS for name in names])[chosen]
    solarize = torch.tensor([name == "Solarize" for name in names])[chosen]
    values = torch.where(signed & (sign <= 0.5), -values, values)
    return torch.where(blends, 1 + values, torch.where(solarize, 255 * values, values))


_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", *_BLENDS)


@functools.cache
def _table(policy: str, bins: int, height: int, width: int) -> tuple[list[str], Tensor]:
    """The ops of one of torchvision's policies, and their magnitudes: ops x bins float64."""
    space: dict[str, tuple[Callable[..., Any], bool]] = getattr(v2, policy)._AUGMENTATION_SPACE
    assert all(signed == (name in _SIGNED) for name, (_, signed) in space.items()), "torchvision changed its policies"
    rows = []
    for magnitudes, _ in space.values():
        values = magnitudes(bins, height, width)
        rows.append(torch.zeros(bins, dtype=torch.float64) if values is None else values.double())
    return list(space), torch.stack(rows)


@functools.cache
def _auto_policies(policy: str, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """torchvision's pairs: ops, probabilities and magnitudes' numbers, pairs x 2 each."""
    pairs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))._policies
    ops = torch.tensor([[names.index(name) for name, _, _ in pair] for pair in pairs])
    probabilities = torch.tensor([[probability for _, probability, _ in pair] for pair in pairs])
    levels = torch.tensor([[0 if level is None else level for _, _, level in pair] for pair in pairs])
    return ops, probabilities, levels
