"""AgMax as a method: options, the Q-network, and the term that it adds to the loss."""

from __future__ import annotations

from collections.abc import Generator

import torch
from pydantic import Field
from torch import Tensor, nn

import augury
from augury_agmax.functional import disagreement, marginal_entropy, q_units


class AgMax(augury.Method):
    """Agreement maximisation (Atienza, WACV 2022, pp. 372-381): two views of each image that must agree.

    loss + dl_weight * mean|softmax(Q([z; z'])) - softmax(z or z')| - 1/3 [H(z) + H(z') + H(Q)], H the entropy of the
    mean prediction over the rows of all processes. At test time the network is used alone.

    State: `q`, the Q-network, trained with the network and never exported.
    """

    class Options(augury.Options):
        """The options of AgMax."""

        dl_weight: float = Field(
            4.0,
            ge=0,
            allow_inf_nan=False,
            description="weight of the disagreement of the Q-network with each view. Paper's program: 4",
        )
        n_units: int | None = Field(
            None,
            ge=1,
            description="width of the Q-network; by the number of classes when unset, as in the paper's program: 128 "
            "for 10 classes, 512 for 100, 4096 for 1000 (its 270-epoch ResNet-50, RegNet and EfficientNet runs: 2048)",
        )

    views = 2
    min_rows = 2

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        classes = spec.num_classes
        units = q_units(classes) if options.n_units is None else options.n_units
        self.q = nn.Sequential(nn.Linear(2 * classes, units), nn.ReLU(), nn.Linear(units, classes))

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Add the mutual information's terms to what the criterion makes of both views."""
        loss = yield
        logits = output.logits.to(next(self.q.parameters())).unflatten(0, (batch.views, -1))
        predicted = self.q(torch.cat(tuple(logits), 1))
        probabilities = torch.cat([logits, predicted[None]]).softmax(2)
        entropy = marginal_entropy(probabilities, run.ranks.mean).mean()
        distance = disagreement(probabilities[-1], probabilities[:-1])
        run.log("entropy", entropy)
        run.log("disagreement", distance)
        return loss - entropy + self.options.dl_weight * distance
