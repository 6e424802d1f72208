"""What a method sums over the batch it sums over all processes: differentiable, and nothing at all in one process."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class Waiting:
    """Whether this process is where it may wait for others.

    Attributes:
        entered: how often it came there.
        depth: how many such blocks it is in; 0 where it works alone.
        since: when that changed, as `time.monotonic` counts.
    """

    def __init__(self) -> None:
        self.entered, self.depth, self.since = 0, 0, 0.0

    def __enter__(self) -> None:
        self.entered, self.depth, self.since = self.entered + 1, self.depth + 1, time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.depth, self.since = self.depth - 1, time.monotonic()


waiting = Waiting()
"""State of this process. Enter it around every call that returns only when all processes have made it."""


class Ranks:
    """The processes that train together; every one holds the same number of rows, as the trainer's loaders make sure.

    Gradients are averaged over processes, as DistributedDataParallel does. So a mean over this process's rows needs
    nothing further: its average over processes is the mean over all rows, and so is its gradient.

    Attributes:
        rank: of this process, from 0.
        size: how many processes there are.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        """Use `group`, else the default group where torch.distributed is initialised, else this process alone."""
        started = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if started else 0
        self.size = dist.get_world_size(group) if started else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum of `tensor` over the processes; the gradient of each process's summand is the sum of all processes'
        gradients."""
        return tensor if self.size == 1 else _AllReduce.apply(tensor, self.group)

    def mean(self, tensor: Tensor) -> Tensor:
        """Mean of `tensor` over the processes, differentiable likewise."""
        return tensor if self.size == 1 else self.sum(tensor) / self.size

    def gather_rows(self, tensor: Tensor, *, differentiable: bool = False) -> Tensor:
        """Return the processes' rows one after the other, R x ... -> size * R x ..., detached unless `differentiable`:
        then the gradient of each process's rows is the sum of all processes' gradients."""
        if not differentiable:
            tensor = tensor.detach()
        return tensor if self.size == 1 else _Gather.apply(tensor, self)

    def gather_objects(self, value: T) -> list[T]:
        """The processes' values, in their order; the devices are waited for."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with waiting:
            dist.all_gather_object(values, value, group=self.group)
        return values


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, ranks: Ranks) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.ranks, ctx.rows = ranks, len(tensor)
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(ranks.size)]
        with waiting:
            dist.all_gather(parts, tensor.contiguous(), group=ranks.group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.ranks.group)
        return gradient[ctx.ranks.rank * ctx.rows :][: ctx.rows], None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.group = group
        total = tensor.detach().clone()
        with waiting:
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None
