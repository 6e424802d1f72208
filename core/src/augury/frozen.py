"""A network that is never trained."""

from __future__ import annotations

import copy

from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a network, as `module`, whose parameters have become buffers, which is what keeps every optimiser and DDP
    away from them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.passes = 0
        """Rows that went through it: what it costs."""
        for part in self.module.modules():
            for name, parameter in list(part._parameters.items()):
                del part._parameters[name]
                part.register_buffer(name, None if parameter is None else parameter.detach())
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Evaluation mode always, whatever `mode`."""
        super().train(False)
        return self

    def copy_from(self, network: nn.Module) -> None:
        """Take over the weights of a network of the same structure."""
        self.module.load_state_dict(network.state_dict())

    def forward(self, images: Tensor) -> Tensor:
        self.passes += len(images)
        return self.module(images)
