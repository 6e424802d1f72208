"""timm's residual networks with a 3x3 stem and no max-pool, in its registry as resnet{18,34,50}_cifar (He et al. 2016,
arXiv 1512.03385) and resnext29_{8,16}x64d_cifar (Xie et al. 2017, arXiv 1611.05431, section 5.3)."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from augury_train.backbones.cifar import at_full_size, cfg, draw_convolutions, small_stem


class ResNetSmallStem(ResNet):
    """timm's ResNet for small images: its first convolution is 3x3 with stride 1, and nothing is pooled after it."""

    def __init__(self, block: Any, layers: tuple[int, ...], zero_init_last: bool = False, **kwargs: Any) -> None:
        """Take what timm's ResNet takes.

        Args:
            block: class of the blocks.
            layers: how many of them each stage has.
            zero_init_last: start each residual branch at zero, which the papers' programs do not.
            kwargs: the other arguments of timm's.
        """
        super().__init__(block, layers, zero_init_last=zero_init_last, **kwargs)
        stem: Any = self.conv1
        self.in_chans = stem.in_channels
        self.add_module("conv1", small_stem(stem))
        self.add_module("maxpool", nn.Identity())
        draw_convolutions(self.conv1)
        self.feature_info = at_full_size(self.feature_info)
        if not hasattr(self, "layer4"):
            # timm names all four stages, and puts an empty one where it leaves one out.
            self.add_module("layer4", nn.Sequential())


default_cfgs = generate_default_cfgs(
    {
        **{f"resnet{depth}_cifar": cfg(pool_size=(4, 4)) for depth in (18, 34, 50)},
        **{f"resnext29_{cardinality}x64d_cifar": cfg() for cardinality in (8, 16)},
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> ResNetSmallStem:
    return build_model_with_cfg(ResNetSmallStem, name, pretrained, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetSmallStem:
    """ResNet-18 with a stem for 32x32 images: 11.2 M parameters."""
    return _create("resnet18_cifar", pretrained, **{"block": BasicBlock, "layers": (2, 2, 2, 2), **kwargs})


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetSmallStem:
    """ResNet-34 with a stem for 32x32 images: 21.3 M parameters."""
    return _create("resnet34_cifar", pretrained, **{"block": BasicBlock, "layers": (3, 4, 6, 3), **kwargs})


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetSmallStem:
    """ResNet-50 with a stem for 32x32 images: 23.5 M parameters."""
    return _create("resnet50_cifar", pretrained, **{"block": Bottleneck, "layers": (3, 4, 6, 3), **kwargs})


_RESNEXT29: dict[str, Any] = {
    "block": Bottleneck,
    "layers": (3, 3, 3),
    "channels": (64, 128, 256),
    "base_width": 64,
}


@register_model
def resnext29_8x64d_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetSmallStem:
    """ResNeXt-29, 8x64d, for 32x32 images: 34.4 M parameters."""
    return _create("resnext29_8x64d_cifar", pretrained, **{**_RESNEXT29, "cardinality": 8, **kwargs})


@register_model
def resnext29_16x64d_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetSmallStem:
    """ResNeXt-29, 16x64d, for 32x32 images: 68.2 M parameters."""
    return _create("resnext29_16x64d_cifar", pretrained, **{**_RESNEXT29, "cardinality": 16, **kwargs})
