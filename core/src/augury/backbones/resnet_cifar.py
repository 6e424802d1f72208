"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2), in timm's registry as
resnet{20,32,44,56,110}_cifar."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import Tensor, nn


class Shortcut(nn.Module):
    """The shortcut without parameters: every second pixel, new channels zero ("option A" of the paper)."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class ResNetCifar(nn.Module):
    """A 3x3 stem and three stages of 16, 32 and 64 channels; timm's interface."""

    def __init__(self, depth: int = 20, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        """Build a network of `depth` = 6n + 2 weight layers.

        Args:
            depth: 20, 32, 44, 56 or 110.
            num_classes: C; 0 for no classifier.
            in_chans: channels of the images.
            drop_rate: dropout before the classifier.
        """
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features = self.head_hidden_size = 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, width, stages = (depth - 2) // 6, 16, []
        for out in (16, 32, 64):
            first = BasicBlock(
                width, out, stride=out // width, downsample=Shortcut(out - width) if out != width else None
            )
            stages.append(nn.Sequential(first, *(BasicBlock(out, out) for _ in range(blocks - 1))))
            width = out
        self.layer1, self.layer2, self.layer3 = stages
        self.fc: nn.Module
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one for `num_classes`."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The stem, and the stages or blocks, by their parameters' names (timm's layer groups)."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x 64 x H/4 x W/4."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map -> logits M x C, or features M x 64."""
        x = F.dropout(x.mean((2, 3)), self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_CFG = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "conv1",
    "classifier": "fc",
}

default_cfgs = generate_default_cfgs({f"resnet{depth}_cifar": dict(_CFG) for depth in (20, 32, 44, 56, 110)})


def _create(depth: int, pretrained: bool, **kwargs: Any) -> ResNetCifar:
    return build_model_with_cfg(ResNetCifar, f"resnet{depth}_cifar", pretrained, depth=depth, **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20 for 32x32 images: 0.27 M parameters."""
    return _create(20, pretrained, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32 for 32x32 images: 0.46 M parameters."""
    return _create(32, pretrained, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-44 for 32x32 images: 0.66 M parameters."""
    return _create(44, pretrained, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56 for 32x32 images: 0.85 M parameters."""
    return _create(56, pretrained, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-110 for 32x32 images: 1.7 M parameters."""
    return _create(110, pretrained, **kwargs)
