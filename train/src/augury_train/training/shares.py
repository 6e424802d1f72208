"""Tensors of which each process holds a share (torch's DTensor): gathered, shared out, and bounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def clip_shares(parameters: Sequence[Tensor], bound: float, mode: str) -> None:
    """Bound the gradients of weights of which some are spread, as torch's `clip_grad_norm_` and `clip_grad_value_` do.

    Args:
        parameters: all that are trained.
        bound: of the norm of all gradients together, or of each value.
        mode: `norm` or `value`.
    """
    from torch.distributed.tensor import DTensor

    given = [p for p in parameters if p.grad is not None]
    # torch does not compute with both kinds at once.
    kinds = [
        some for some in ([p for p in given if isinstance(p, DTensor) is spread] for spread in (True, False)) if some
    ]
    if mode == "value":
        for some in kinds:
            nn.utils.clip_grad_value_(some, bound)
        return
    norms: list[Any] = [nn.utils.get_total_norm([p.grad for p in some if p.grad is not None]) for some in kinds]
    total = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for some in kinds:
        nn.utils.clip_grads_with_norm_(some, bound, total)


def gathered(state: Any, keep: bool) -> Any:
    """`state` with whole tensors on the host for shares; with None for them, unless it is to be kept here."""
    from torch.distributed.tensor import DTensor

    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.detach().cpu() if keep else None
    if isinstance(state, Mapping):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [gathered(value, keep) for value in state]
    return state


def share(value: Any, like: Any) -> Any:
    """This process's share of a whole tensor, where `like` is one of that shape; any other value itself."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    # Every process has the whole of it, so nothing is sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
