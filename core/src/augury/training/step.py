"""One step as one module, batch -> loss: the unit that data-parallel training wraps."""

from __future__ import annotations

from torch import Tensor, nn

from augury.backbones import forward
from augury.batch import Batch
from augury.composition import Composition


class Step(nn.Module):
    """Holds the network and the methods, so that the gradients of both are synchronised alike."""

    def __init__(self, network: nn.Module, methods: Composition) -> None:
        super().__init__()
        self.network = network
        self.methods = methods

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, and the logits M x C (detached) for whoever measures."""
        output = forward(self.network, batch.images)
        return self.methods.compute_loss(batch, output), output.logits.detach()
