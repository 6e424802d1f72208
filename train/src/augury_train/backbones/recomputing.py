"""Gradient checkpointing: blocks of a network that are computed once more in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from augury.errors import UsageError


def checkpoint_gradients(network: nn.Module, name: str) -> None:
    """Let a network keep the inputs of its blocks alone, and compute the rest once more in the backward pass.

    Raises:
        UsageError: timm has no gradient checkpointing for it.
    """
    refusal = UsageError(
        f"model.grad_checkpointing=true: timm has none for `{name}`. Set it to false; optim.accumulation saves memory, "
        "too."
    )
    if not hasattr(network, "set_grad_checkpointing"):
        raise refusal
    try:
        network.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AssertionError, NotImplementedError, TypeError):
        raise refusal from None


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """Put running statistics back at the end: a pass that is made once more must not count its images twice.

    Meanwhile they are as in any pass in training mode. So this is right for every kind of normalisation, and for
    numbers that are not finite.
    """
    buffers = [module._buffers.get(name) for module in network.modules() for name in STATISTICS]
    kept = [(buffer, buffer.clone()) for buffer in buffers if buffer is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
