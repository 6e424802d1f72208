"""Manifold Mixup's mathematics: what is mixed, with what shares, and at which layers.

Letters in shapes: M rows; what a layer makes of them is M x ..., whatever follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INPUT = "input"
"""The name of the images themselves, among the layers."""


def mix_rows(values: Tensor, partners: Tensor, own_share: float) -> Tensor:
    """Mix each row with its partner: lambda h_i + (1 - lambda) h_j (arXiv 1806.05236, section 2).

    Args:
        values: M x ... float, images or what a layer made of them; differentiable.
        partners: M int64, the row that each is mixed with.
        own_share: lambda, in [0, 1].

    Returns:
        the same shape and type.
    """
    return torch.lerp(values[partners], values, own_share)


def pair_shares(rows: int, own_share: float, device: torch.device) -> Tensor:
    """The shares of a row and its partner, alike in all rows, made without a copy from the host.

    Args:
        rows: M.
        own_share: lambda, in [0, 1].
        device: of the result.

    Returns:
        M x 2 float32, summing to 1.
    """
    shares = torch.full((rows, 2), own_share, device=device)
    shares[:, 1] = 1 - shares[:, 0]
    return shares


def first_stages(network: nn.Module, count: int = 2) -> list[str]:
    """The names of a network's first stages, as timm tells them, without its stem.

    Args:
        network: any; one that is not of timm's making tells none.
        count: how many, at most.
    """
    told = getattr(network, "feature_info", None) or []
    modules = dict(network.named_modules())
    names = [str(stage["module"]) for stage in getattr(told, "info", told)]
    return [name for name in names if name and name in modules and _is_stage(name, modules[name])][:count]


def _is_stage(name: str, module: nn.Module) -> bool:
    """Whether it has weights, which an activation behind the stem has not, and is not the stem itself."""
    return "stem" not in name and any(weight.ndim > 1 for weight in module.parameters())


def unknown_layers(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Those of the layers that are neither `input` nor the name of a module inside the network."""
    modules = dict(network.named_modules())
    return [layer for layer in layers if layer != INPUT and (not layer or layer not in modules)]
