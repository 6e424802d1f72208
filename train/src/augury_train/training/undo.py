"""What a step changes before its optimiser does, so that it can be put back bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from augury.composition import Composition
from augury.frozen import Frozen
from augury_train.training.tally import Tally


class Undo:
    """Holds the state at the beginning of a step: the network's buffers, the methods' buffers, parameters and extra
    state, what they logged, and the sums of the epoch. Networks that methods froze do not change and are left out."""

    def __init__(self, network: nn.Module, methods: Composition) -> None:
        self._network, self._methods = network, methods
        self._tensors: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._held: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._extra: list[tuple[nn.Module, Any]] = []
        self._tally: dict[str, Any] = {}
        self._scalars: tuple[dict[str, Tensor], dict[str, int]] = {}, {}

    @torch.no_grad()
    def take(self, tally: Tally) -> None:
        """A step begins; what was held is forgotten."""
        self._held = [(names, dict(names)) for names in self._places()]
        tensors = [value for _, names in self._held for value in names.values() if value is not None]
        if len(tensors) != len(self._tensors) or not all(map(_alike, tensors, self._copies)):
            self._copies = [torch.empty_like(value) for value in tensors]
        self._tensors = tensors
        _copy(self._tensors, self._copies)
        self._extra = [
            (module, copy.deepcopy(module.get_extra_state()))
            for module in _own(self._methods)
            if type(module).get_extra_state is not nn.Module.get_extra_state
        ]
        self._tally = {key: value.clone() if isinstance(value, Tensor) else value for key, value in vars(tally).items()}
        scalars = self._methods.run.scalars
        # Sums are made anew each time, never added to in place.
        self._scalars = dict(scalars.sums), dict(scalars.counts)

    @torch.no_grad()
    def restore(self, tally: Tally) -> None:
        """Put back what `take` found."""
        for names, before in self._held:
            names.clear()
            names.update(before)
        pairs = [*zip(self._tensors, self._copies, strict=True)]
        dense = [(tensor, copied) for tensor, copied in pairs if not _overlaps(tensor)]
        _copy([copied for _, copied in dense], [tensor for tensor, _ in dense])
        for tensor, copied in pairs:
            # It was changed through a tensor that it is a view of: the same object, with memory of its own from now on.
            if _overlaps(tensor) and not torch.equal(tensor, copied):
                tensor.data = copied.clone()
        for module, state in self._extra:
            module.set_extra_state(copy.deepcopy(state))
        for key, value in self._tally.items():
            setattr(tally, key, value)
        scalars = self._methods.run.scalars
        scalars.sums, scalars.counts = self._scalars

    def _places(self) -> Iterator[dict[str, Any]]:
        for module in self._network.modules():
            yield module._buffers
        for module in _own(self._methods):
            yield module._buffers
            yield module._parameters


def _own(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in `module`, but frozen networks."""
    if not isinstance(module, Frozen):
        yield module
        for child in module.children():
            yield from _own(child)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _overlaps(tensor: Tensor) -> bool:
    """Whether several of its numbers are one in memory, as `expand` makes them: nothing can be written there."""
    return any(size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    """Copy each into the other of its place: on a GPU in one call for each type, whatever their number."""
    kinds: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in zip(sources, targets, strict=True):
        froms, tos = kinds.setdefault((source.device, source.dtype), ([], []))
        froms.append(source)
        tos.append(target)
    for froms, tos in kinds.values():
        torch._foreach_copy_(tos, froms)
