"""The network that methods are tested on, in timm's registry as `contract_net`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from augury_train.backbones.cifar import CifarNetwork, cfg

NAME = "contract_net"
CHANNELS = (8, 12)
"""Of the stages; the last one is A."""


class Statistics(nn.BatchNorm2d):
    """Keeps BatchNorm's running statistics, and returns its input unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False)

    def forward(self, input: Tensor) -> Tensor:
        """M x ch x H x W -> the same."""
        if self.training:
            with torch.no_grad():
                super().forward(input)
        return input


class ContractNet(CifarNetwork):
    """Three small convolutions, pooling and a linear classifier, in timm's shape.

    Without normalisation and dropout, so that what it makes of a row depends on that row alone, and numbers can be
    compared over batches and processes; without kinks at 0, so that every weight has a gradient. It keeps statistics as
    BatchNorm does, so that a pass shows that should not move them.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0, global_pool: str = "avg"
    ) -> None:
        """Build a network for small images of `in_chans` channels; the rest are timm's arguments."""
        super().__init__(num_classes, in_chans, drop_rate)
        first, second = CHANNELS
        self.conv1 = nn.Conv2d(in_chans, first, 3, padding=1)
        self.bn1 = Statistics(first)
        self.layer1 = nn.Sequential(nn.GELU(), nn.Conv2d(first, first, 3, padding=1), nn.GELU())
        self.layer2 = nn.Sequential(nn.Conv2d(first, second, 3, stride=2, padding=1), nn.GELU())
        self._add_head(CHANNELS, global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """M x ch x H x W -> M x A x H/2 x W/2."""
        return self.layer2(self.layer1(self.bn1(self.conv1(x))))


default_cfgs = generate_default_cfgs({NAME: cfg(input_size=(3, 8, 8), pool_size=(4, 4))})


@register_model
def contract_net(pretrained: bool = False, **kwargs: Any) -> ContractNet:
    """The contract suite's network: 2,000 parameters."""
    return build_model_with_cfg(ContractNet, NAME, pretrained, **kwargs)


def builder(channels: int, num_classes: int) -> partial[ContractNet]:
    """Makes such networks; it can be sent to another process."""
    return partial(ContractNet, num_classes=num_classes, in_chans=channels)


def builder_on_resume(channels: int, num_classes: int) -> partial[ContractNet]:
    """Makes the same networks with other weights: a resumed run does not load trained weights again."""
    return partial(_other_weights, channels, num_classes)


def _other_weights(channels: int, num_classes: int) -> ContractNet:
    network = builder(channels, num_classes)()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    return network
