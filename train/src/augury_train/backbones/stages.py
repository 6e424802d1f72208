"""Stages of a network that keep the weights and the statistics they start with."""

from __future__ import annotations

from timm.models import group_parameters
from torch import nn

from augury.errors import UsageError
from augury_train.config import ModelConfig


def freeze_stages(network: nn.Module, config: ModelConfig) -> None:
    """Take the first `config.frozen_stages` stages (the stem is the first) out of training.

    Raises:
        UsageError: the network has fewer, or does not tell its stages.
    """
    if config.frozen_stages == 0:
        return
    matcher = getattr(network, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"model.frozen_stages={config.frozen_stages}: `{config.name}` does not tell its stages. Set it to 0."
        )
    stages = group_parameters(network, matcher(coarse=True))
    # The last group is the classifier, which is never frozen.
    numbers = sorted(stages)[:-1]
    if config.frozen_stages > len(numbers):
        raise UsageError(
            f"model.frozen_stages={config.frozen_stages}: `{config.name}` has {len(numbers)} stages with the stem. "
            f"Set it with --set model.frozen_stages={len(numbers)} or less."
        )
    frozen = {name for number in numbers[: config.frozen_stages] for name in stages[number]}
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)


def keep_statistics(network: nn.Module) -> None:
    """Put the normalisation layers of frozen stages back in evaluation mode; to be called after `network.train()`."""
    for module in network.modules():
        scale = getattr(module, "weight", None)
        if getattr(module, "running_mean", None) is not None and scale is not None and not scale.requires_grad:
            module.eval()
