"""Sharpness-aware minimisation (Foret et al., ICLR 2021, arXiv 2010.01412): gradients at weights moved up the loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


class SharpnessAware:
    """Moves weights up along the gradient of the composed loss, and back."""

    def __init__(self, rho: float, parameters: Iterable[nn.Parameter]) -> None:
        """Move all of `parameters` together, by a vector of length `rho`."""
        self._rho = rho
        self._parameters = [p for p in parameters if p.requires_grad]

    @contextlib.contextmanager
    def climbed(self) -> Iterator[None]:
        """While this is open, the weights are w + rho g / ||g||, with g their gradients (equation 2, with p = 2).

        The gradients are cleared at the beginning, and the weights are put back bit for bit at the end.
        """
        tensors = [p.detach() for p in self._parameters if p.grad is not None]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        before = [tensor.clone() for tensor in tensors]
        with torch.no_grad():
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            # Nothing waits for the length. Where it is 0, the gradients are, too; where it is not finite, the weights
            # stay, and the second pass meets what the first one did.
            scale, finite = self._rho / (length + 1e-12), length.isfinite()
            for tensor, gradient in zip(tensors, gradients, strict=True):
                tensor.add_(torch.where(finite, gradient * scale, 0))
            for parameter in self._parameters:
                parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, before)
