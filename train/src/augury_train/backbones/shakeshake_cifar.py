"""Residual networks of two branches with Shake-Shake (Gastaldi 2017, arXiv 1705.07485), in timm's registry as
shakeshake26_2x{32,96,112}d_cifar."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from augury_train.backbones.cifar import CifarNetwork, blocks_per_stage, cfg
from augury_train.backbones.shaking import ShakeShake


class TwoPaths(nn.Module):
    """The shortcut where the width changes: half of the channels from every `stride`-th pixel, half from the pixel to
    the lower right of each. (The paper's program takes the one to the upper left; later ones take this one.)"""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(width, out // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(width, out - out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        every = slice(None, None, self.stride)
        here, there = x[:, :, every, every], F.pad(x, (-1, 1, -1, 1))[:, :, every, every]
        return self.bn(torch.cat((self.conv1(here), self.conv2(there)), 1))


class ShakeBlock(nn.Module):
    """Two branches of two 3x3 convolutions after one ReLU, mixed by `ShakeShake`."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.branch1, self.branch2 = (_branch(width, out, stride) for _ in range(2))
        self.shake = ShakeShake()
        self.shortcut = TwoPaths(width, out, stride) if (width, stride) != (out, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        seen = F.relu(x)
        shortcut = x if self.shortcut is None else self.shortcut(seen)
        return shortcut + self.shake(self.branch1(seen), self.branch2(seen))


def _branch(width: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, out, 3, stride, 1, bias=False),
        BatchNormAct2d(out),
        nn.Conv2d(out, out, 3, padding=1, bias=False),
        nn.BatchNorm2d(out),
    )


class ShakeShakeCifar(CifarNetwork):
    """A 3x3 stem of 16 channels and three stages of 1, 2 and 4 times `width` channels; timm's interface."""

    def __init__(
        self,
        depth: int = 26,
        width: int = 32,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        """Build "`depth` 2x`width`d".

        Args:
            depth: 6n + 2.
            width: channels of the first stage.
            num_classes: C; 0 for no classifier.
            in_chans: channels of the images.
            drop_rate: dropout before the classifier.
            global_pool: timm's name of the pooling, "" for none.
        """
        super().__init__(num_classes, in_chans, drop_rate)
        blocks, channels, stages = blocks_per_stage(depth, layers=2, others=2), 16, []
        self.conv1 = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        for out, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            first = ShakeBlock(channels, out, stride)
            stages.append(nn.Sequential(first, *(ShakeBlock(out, out, 1) for _ in range(blocks - 1))))
            channels = out
        self.layer1, self.layer2, self.layer3 = stages
        self._add_head((width, 2 * width, 4 * width), global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x 4 width x H/4 x W/4."""
        x = self.bn1(self.conv1(x))
        return F.relu(self.layer3(self.layer2(self.layer1(x))))


default_cfgs = generate_default_cfgs({f"shakeshake26_2x{width}d_cifar": cfg() for width in (32, 96, 112)})


def _create(name: str, pretrained: bool, **kwargs: Any) -> ShakeShakeCifar:
    return build_model_with_cfg(ShakeShakeCifar, name, pretrained, **kwargs)


@register_model
def shakeshake26_2x32d_cifar(pretrained: bool = False, **kwargs: Any) -> ShakeShakeCifar:
    """Shake-Shake 26 2x32d for 32x32 images: 2.9 M parameters."""
    return _create("shakeshake26_2x32d_cifar", pretrained, **{"width": 32, **kwargs})


@register_model
def shakeshake26_2x96d_cifar(pretrained: bool = False, **kwargs: Any) -> ShakeShakeCifar:
    """Shake-Shake 26 2x96d for 32x32 images: 26.2 M parameters."""
    return _create("shakeshake26_2x96d_cifar", pretrained, **{"width": 96, **kwargs})


@register_model
def shakeshake26_2x112d_cifar(pretrained: bool = False, **kwargs: Any) -> ShakeShakeCifar:
    """Shake-Shake 26 2x112d for 32x32 images: 35.6 M parameters (tables that say 36.4 M count shortcuts that are made
    and never used)."""
    return _create("shakeshake26_2x112d_cifar", pretrained, **{"width": 112, **kwargs})
