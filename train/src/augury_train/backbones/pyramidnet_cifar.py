"""Pyramidal residual networks (Han et al. 2017, arXiv 1610.02915), in timm's registry as pyramidnet110_a64_cifar,
pyramidnet200_a240_cifar and, with ShakeDrop (Yamada et al. 2019, arXiv 1802.02375), shakepyramidnet110_cifar."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from augury_train.backbones.cifar import CifarNetwork, blocks_per_stage, cfg
from augury_train.backbones.shaking import ShakeDrop

EXPANSION = 4
"""How many times wider than its 3x3 convolution a bottleneck's output is."""


class PyramidBlock(nn.Module):
    """A residual branch that begins and ends with a norm and has no ReLU before its first convolution (figure 6d of the
    paper); the shortcut has no parameters."""

    def __init__(self, branch: list[nn.Module], stride: int, added: int, keep: float) -> None:
        """Join a branch and its shortcut.

        Args:
            branch: layers in order.
            stride: of the branch; the shortcut is averaged over as many pixels.
            added: channels that the shortcut lacks; they are zero.
            keep: ShakeDrop's probability to keep the branch as it is; 1 for no ShakeDrop.
        """
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.shake = ShakeDrop(keep) if keep < 1 else nn.Identity()
        # Rounded up, as the convolution does, where a side is odd.
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return self.shake(self.branch(x)) + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.added))


def basic_branch(width: int, out: int, stride: int) -> list[nn.Module]:
    """Two 3x3 convolutions."""
    return [
        nn.BatchNorm2d(width),
        nn.Conv2d(width, out, 3, stride, 1, bias=False),
        BatchNormAct2d(out),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
    ]


def bottleneck_branch(width: int, inner: int, stride: int) -> list[nn.Module]:
    """A 3x3 convolution between two 1x1."""
    return [
        nn.BatchNorm2d(width),
        nn.Conv2d(width, inner, 1, bias=False),
        BatchNormAct2d(inner),
        nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
        BatchNormAct2d(inner),
        nn.Conv2d(inner, EXPANSION * inner, 1, bias=False),
        nn.BatchNorm2d(EXPANSION * inner),
    ]


class PyramidNetCifar(CifarNetwork):
    """A 3x3 stem of 16 channels and three stages in which each block is wider than the one before; timm's interface."""

    def __init__(
        self,
        depth: int = 110,
        alpha: int = 64,
        bottleneck: bool = True,
        last_keep: float = 1.0,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        """Build PyramidNet-`depth`.

        Args:
            depth: 9n + 2 with bottlenecks, else 6n + 2.
            alpha: the widening: block k of K has 16 + alpha k / K channels (equation 2 of the paper; rounded to the
                nearest, as its program does), four times as many after a bottleneck.
            bottleneck: bottlenecks, else blocks of two 3x3 convolutions.
            last_keep: ShakeDrop's probability to keep the last branch as it is, p_L; p_k = 1 - (1 - p_L) k / K of the
                others. 1 for no ShakeDrop.
            num_classes: C; 0 for no classifier.
            in_chans: channels of the images.
            drop_rate: dropout before the classifier.
            global_pool: timm's name of the pooling, "" for none.
        """
        super().__init__(num_classes, in_chans, drop_rate)
        if not 0 < last_keep <= 1:
            raise ValueError(f"last_keep must be in (0, 1], got {last_keep}")
        blocks = blocks_per_stage(depth, layers=3 if bottleneck else 2, others=2)
        make, expansion = (bottleneck_branch, EXPANSION) if bottleneck else (basic_branch, 1)
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        width, widths, stages = 16, [], []
        for stage in range(3):
            stages.append(nn.Sequential())
            for block in range(blocks):
                share = (stage * blocks + block + 1) / (3 * blocks)
                inner, stride = round(16 + alpha * share), 2 if stage > 0 and block == 0 else 1
                added = expansion * inner - width
                keep = 1 - (1 - last_keep) * share
                stages[-1].append(PyramidBlock(make(width, inner, stride), stride, added, keep))
                width += added
            widths.append(width)
        self.layer1, self.layer2, self.layer3 = stages
        self.bn_final = BatchNormAct2d(width)
        self._add_head(widths, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x A x H/4 x W/4."""
        x = self.bn1(self.conv1(x))
        return self.bn_final(self.layer3(self.layer2(self.layer1(x))))


default_cfgs = generate_default_cfgs(
    {f"{name}_cifar": cfg() for name in ("pyramidnet110_a64", "pyramidnet200_a240", "shakepyramidnet110")}
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> PyramidNetCifar:
    return build_model_with_cfg(PyramidNetCifar, name, pretrained, **kwargs)


@register_model
def pyramidnet110_a64_cifar(pretrained: bool = False, **kwargs: Any) -> PyramidNetCifar:
    """PyramidNet-110 of bottlenecks, alpha 64, for 32x32 images: 1.7 M parameters."""
    return _create("pyramidnet110_a64_cifar", pretrained, **{"depth": 110, "alpha": 64, **kwargs})


@register_model
def pyramidnet200_a240_cifar(pretrained: bool = False, **kwargs: Any) -> PyramidNetCifar:
    """PyramidNet-200 of bottlenecks, alpha 240, for 32x32 images: 26.8 M parameters."""
    return _create("pyramidnet200_a240_cifar", pretrained, **{"depth": 200, "alpha": 240, **kwargs})


@register_model
def shakepyramidnet110_cifar(pretrained: bool = False, **kwargs: Any) -> PyramidNetCifar:
    """PyramidNet-110, alpha 270, with ShakeDrop, as its paper has it, for 32x32 images: 28.5 M parameters."""
    arguments = {"depth": 110, "alpha": 270, "bottleneck": False, "last_keep": 0.5, **kwargs}
    return _create("shakepyramidnet110_cifar", pretrained, **arguments)
