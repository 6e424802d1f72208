"""Gradient checkpointing: blocks of a network that are computed once more in the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def statistics_kept(network: nn.Module) -> Iterator[None]:
    """While this is open, a pass in training mode normalises by its batch and leaves running statistics as they are: a
    pass that is made once more must not count its images twice."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        # Tracked still: a pass without statistics saves fewer tensors for its gradient, which torch takes for a fault.
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count
