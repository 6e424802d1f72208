"""A densely connected network for small images (Huang et al. 2017, arXiv 1608.06993, section 3), in timm's registry as
densenetbc100_12_cifar."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseNet

from augury_train.backbones.cifar import at_full_size, cfg, draw_convolutions, small_stem


class DenseNetCifar(DenseNet):
    """timm's DenseNet-BC for small images: its stem is one 3x3 convolution with stride 1 and nothing else."""

    def __init__(self, **kwargs: Any) -> None:
        """Take what timm's DenseNet takes: `drop_rate` is before the classifier, `proj_drop_rate` the paper's dropout
        after each convolution."""
        super().__init__(**kwargs)
        stem: Any = self.features.conv0
        self.in_chans = stem.in_channels
        self.features.conv0 = small_stem(stem)
        del self.features.norm0, self.features.pool0
        draw_convolutions(self)
        # timm taps the norm that is gone, and keeps the places of its taps.
        self.feature_info = at_full_size(self.feature_info)
        self.feature_info[0]["module"] = "features.conv0"
        names = [f"features.{name}" for name, _ in self.features.named_children()]
        self.feature_ends = [names.index(str(tap["module"])) for tap in self.feature_info]


default_cfgs = generate_default_cfgs(
    {"densenetbc100_12_cifar": cfg(first_conv="features.conv0", classifier="classifier")}
)


@register_model
def densenetbc100_12_cifar(pretrained: bool = False, **kwargs: Any) -> DenseNetCifar:
    """DenseNet-BC of 100 layers and growth rate 12 for 32x32 images: 0.77 M parameters."""
    arguments = {"growth_rate": 12, "block_config": (16, 16, 16), **kwargs}
    return build_model_with_cfg(DenseNetCifar, "densenetbc100_12_cifar", pretrained, **arguments)
