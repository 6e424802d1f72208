"""Mixing inside the network: at the output of one layer, in one forward pass, and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from augury.errors import UsageError

_WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers put before a module's name: those for several devices, and the compiler."""


@dataclass
class HiddenMix:
    """A mixing of rows that is due inside the network.

    Attributes:
        layer: name of the module at whose output rows are mixed, as `network.named_modules()` has it.
        mix: that output, M x ..., -> the same of the mixed rows.
        rows: M.
        done: whether a forward pass has mixed.
    """

    layer: str
    mix: Callable[[Tensor], Tensor]
    rows: int
    done: bool = False

    @contextlib.contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """While this is open, a forward pass of `network` mixes: one pass, in which the layer is called once.

        Raises:
            UsageError: there is no such layer, it is called otherwise, or its output is no tensor of M rows.
        """
        names = {_bare(name): module for name, module in network.named_modules()}
        if self.layer not in names or not self.layer:
            top = ", ".join(name for name, _ in network.named_children())
            raise UsageError(f"the network has no layer `{self.layer}` to mix at. At its top: {top}.")
        calls = 0

        def change(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return self._mixed(output)

        handle = names[self.layer].register_forward_hook(change)
        try:
            yield
        finally:
            handle.remove()
        if calls == 0:
            raise UsageError(
                f"layer `{self.layer}` was not called in the forward pass, or not where it can be seen: a compiled "
                "network hides its layers. Mix at another, or give the network itself."
            )
        if calls > 1:
            raise UsageError(f"layer `{self.layer}` is called {calls} times in a pass. Mix at one that is called once.")
        self.done = True

    def _mixed(self, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            made = type(output).__name__
            raise UsageError(f"layer `{self.layer}` makes a {made}; only rows of a tensor can be mixed. Name another.")
        shape = tuple(output.shape)
        if shape[:1] != (self.rows,):
            raise UsageError(
                f"layer `{self.layer}` makes a tensor of shape {shape} of {self.rows} rows; only what has the rows "
                "first can be mixed. Name another."
            )
        # Shares are float32, and under autocast the next layer expects what this one made.
        mixed = self.mix(output).to(output.dtype)
        if tuple(mixed.shape) != shape:
            raise UsageError(f"layer `{self.layer}`: mixing made a tensor of shape {tuple(mixed.shape)} of {shape}.")
        return mixed


def _bare(name: str) -> str:
    """A module's name without what wrappers put before it."""
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name
