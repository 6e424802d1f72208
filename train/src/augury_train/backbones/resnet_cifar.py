"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2), in timm's registry as
resnet{20,32,44,56,110}_cifar, and with squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507) as
seresnet110_cifar."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.layers import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn

from augury_train.backbones.cifar import CifarNetwork, blocks_per_stage, cfg


class Shortcut(nn.Module):
    """The shortcut without parameters: every second pixel, new channels zero ("option A" of the paper)."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class ResNetCifar(CifarNetwork):
    """A 3x3 stem and three stages of 16, 32 and 64 channels; timm's interface."""

    def __init__(
        self,
        depth: int = 20,
        reduction: int | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        """Build a network of `depth` = 6n + 2 weight layers.

        Args:
            depth: 20, 32, 44, 56 or 110.
            reduction: end each residual branch with squeeze-and-excitation of a `reduction`-th of its channels.
            num_classes: C; 0 for no classifier.
            in_chans: channels of the images.
            drop_rate: dropout before the classifier.
            global_pool: timm's name of the pooling, "" for none.
        """
        super().__init__(num_classes, in_chans, drop_rate)
        # Without biases and with one channel at least; timm's default is a multiple of eight.
        gate: Any = partial(SEModule, rd_ratio=1 / reduction, rd_divisor=1, bias=False) if reduction else None
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, width, stages = blocks_per_stage(depth, layers=2, others=2), 16, []
        for out in (16, 32, 64):
            shortcut = Shortcut(out - width) if out != width else None
            first = BasicBlock(width, out, stride=out // width, downsample=shortcut, attn_layer=gate)
            stages.append(nn.Sequential(first, *(BasicBlock(out, out, attn_layer=gate) for _ in range(blocks - 1))))
            width = out
        self.layer1, self.layer2, self.layer3 = stages
        self._add_head((16, 32, 64), global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x 64 x H/4 x W/4."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.layer3(self.layer2(self.layer1(x)))


_NAMES = [f"resnet{depth}_cifar" for depth in (20, 32, 44, 56, 110)] + ["seresnet110_cifar"]

default_cfgs = generate_default_cfgs({name: cfg() for name in _NAMES})


def _create(name: str, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    return build_model_with_cfg(ResNetCifar, name, pretrained, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20 for 32x32 images: 0.27 M parameters."""
    return _create("resnet20_cifar", pretrained, **{"depth": 20, **kwargs})


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32 for 32x32 images: 0.46 M parameters."""
    return _create("resnet32_cifar", pretrained, **{"depth": 32, **kwargs})


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-44 for 32x32 images: 0.66 M parameters."""
    return _create("resnet44_cifar", pretrained, **{"depth": 44, **kwargs})


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56 for 32x32 images: 0.85 M parameters."""
    return _create("resnet56_cifar", pretrained, **{"depth": 56, **kwargs})


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-110 for 32x32 images: 1.73 M parameters."""
    return _create("resnet110_cifar", pretrained, **{"depth": 110, **kwargs})


@register_model
def seresnet110_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-110 with squeeze-and-excitation of a 16th of the channels: 1.74 M parameters."""
    return _create("seresnet110_cifar", pretrained, **{"depth": 110, "reduction": 16, **kwargs})
