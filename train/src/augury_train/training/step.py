"""One step as one module, batch -> loss: the unit that data-parallel training wraps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from augury.batch import Batch
from augury.composition import Composition
from augury.passes import features_and_logits, forward, logits_of


class Step(nn.Module):
    """Holds the network and the methods, so that the gradients of both are synchronised alike."""

    def __init__(
        self, network: nn.Module, methods: Composition, *, compiled: bool = False, channels_last: bool = False
    ) -> None:
        """Step with `network`, its forward pass compiled and its images laid out with the channels last if so asked."""
        super().__init__()
        self.network = network
        self.methods = methods
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        # The function is compiled, not the network, whose weights keep their names; and the pass alone, not what
        # catches the features around it, which is no part of any graph.
        self._plain = partial(features_and_logits, call=torch.compile(logits_of)) if compiled else features_and_logits

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss, and the logits M x C (detached) for whoever measures."""
        batch.images = batch.images.contiguous(memory_format=self._layout)
        output = forward(self.network, batch, plain=self._plain)
        return self.methods.compute_loss(batch, output), output.logits.detach()
