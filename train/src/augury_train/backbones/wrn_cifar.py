"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146), in timm's registry as wrn16_8_cifar,
wrn28_10_cifar and wrn40_2_cifar."""

from __future__ import annotations

from typing import Any

from timm.layers import BatchNormAct2d
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from augury_train.backbones.cifar import CifarNetwork, blocks_per_stage, cfg


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU, with dropout between them (figure 1d of the paper).

    Where the width changes, the shortcut is a 1x1 convolution of what the first 3x3 one sees.
    """

    def __init__(self, width: int, out: int, stride: int, drop_rate: float) -> None:
        super().__init__()
        self.bn1 = BatchNormAct2d(width)
        self.conv1 = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.bn2 = BatchNormAct2d(out)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(width, out, 1, stride, bias=False) if (width, stride) != (out, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        seen = self.bn1(x)
        shortcut = x if self.shortcut is None else self.shortcut(seen)
        return shortcut + self.conv2(self.drop(self.bn2(self.conv1(seen))))


class WideResNetCifar(CifarNetwork):
    """A 3x3 stem and three stages of 16, 32 and 64 times `width` channels; timm's interface."""

    def __init__(
        self,
        depth: int = 28,
        width: int = 10,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        """Build WRN-`depth`-`width`.

        Args:
            depth: 6n + 4.
            width: the widening factor k.
            num_classes: C; 0 for no classifier.
            in_chans: channels of the images.
            drop_rate: dropout inside the blocks, the only one of the paper (0.3 there on CIFAR); none before the
                classifier.
            global_pool: timm's name of the pooling, "" for none.
        """
        super().__init__(num_classes, in_chans, drop_rate=0.0)
        blocks, channels, stages = blocks_per_stage(depth, layers=2, others=4), 16, []
        self.conv1 = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        for out, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            first = WideBlock(channels, out, stride, drop_rate)
            stages.append(nn.Sequential(first, *(WideBlock(out, out, 1, drop_rate) for _ in range(blocks - 1))))
            channels = out
        self.layer1, self.layer2, self.layer3 = stages
        self.bn_final = BatchNormAct2d(channels)
        self._add_head((16 * width, 32 * width, 64 * width), global_pool)
        self.drop_rate = drop_rate

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x 64k x H/4 x W/4."""
        return self.bn_final(self.layer3(self.layer2(self.layer1(self.conv1(x)))))


default_cfgs = generate_default_cfgs({f"wrn{size}_cifar": cfg() for size in ("16_8", "28_10", "40_2")})


def _create(name: str, pretrained: bool, **kwargs: Any) -> WideResNetCifar:
    return build_model_with_cfg(WideResNetCifar, name, pretrained, **kwargs)


@register_model
def wrn16_8_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNetCifar:
    """WRN-16-8 for 32x32 images: 11.0 M parameters."""
    return _create("wrn16_8_cifar", pretrained, **{"depth": 16, "width": 8, **kwargs})


@register_model
def wrn28_10_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNetCifar:
    """WRN-28-10 for 32x32 images: 36.5 M parameters."""
    return _create("wrn28_10_cifar", pretrained, **{"depth": 28, "width": 10, **kwargs})


@register_model
def wrn40_2_cifar(pretrained: bool = False, **kwargs: Any) -> WideResNetCifar:
    """WRN-40-2 for 32x32 images: 2.2 M parameters."""
    return _create("wrn40_2_cifar", pretrained, **{"depth": 40, "width": 2, **kwargs})
