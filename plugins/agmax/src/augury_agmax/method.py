"""AgMax as a method: options, the Q-network, and the term that it adds to the loss."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

import augury
from augury_agmax.functional import WITHOUT_Q, disagreement, marginal_entropy, normal_init_, q_units


class AgMax(augury.Method):
    """Agreement maximisation (Atienza, WACV 2022, pp. 372-381): two views of each image that must agree.

    loss + dl_weight * mean|softmax(Q([z; z'])) - softmax(z or z')| - 1/3 [H(z) + H(z') + H(Q)], H the entropy of the
    mean prediction over the rows of all processes; or loss + one of the paper's simpler agreements of z and z'. At test
    time the network is used alone.

    State: `q`, the Q-network, trained with the network and never exported; none where the agreement uses none.
    """

    class Options(augury.Options):
        """The options of AgMax."""

        agreement: Literal["mi", "mse", "kl", "ce"] = Field(
            "mi",
            description="what makes the views agree: mutual information by a Q-network (`mi`), or, as the paper's "
            "ablations, added with factor 1 and without a Q-network: the mean squared error of the logits (`mse`), "
            "KL(p'||p) (`kl`) or -mean(p log p') over images and classes (`ce`)",
        )
        variant: Literal["paper", "official"] = Field(
            "paper",
            description="`official`: where q_init_std is set, the network's classifier and all its convolutions start "
            "from normal(0, q_init_std) with zero biases too, as in the authors' program on ImageNet; whatever "
            "weights they had are lost. Without q_init_std the two are the same",
        )
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
        q_init_std: float | None = Field(
            None,
            gt=0,
            allow_inf_nan=False,
            description="standard deviation of the Q-network's first weights, its biases being 0; torch's usual "
            "initialisation when unset. Paper: 0.2 on ImageNet, unset on CIFAR",
        )

        @field_validator("dl_weight", "n_units", "q_init_std")
        @classmethod
        def _used(cls, value: Any, info: ValidationInfo) -> Any:
            agreement = info.data.get("agreement", "mi")
            official = info.field_name == "q_init_std" and info.data.get("variant") == "official"
            if agreement == "mi" or official or value == cls.model_fields[str(info.field_name)].default:
                return value
            raise ValueError(f"left at its default with agreement={agreement}, which has no Q-network")

    contract = "2.0"
    views = 2
    # The paper mixes each view with images of its own.
    views_alike = False
    min_rows = 2
    sharded = True
    batchwise = "its marginals are those of a part"

    def __init__(self, options: Options, spec: augury.Spec) -> None:
        super().__init__(options, spec)
        self.q: nn.Sequential | None = None if options.agreement in WITHOUT_Q else _q_network(options, spec.num_classes)

    @classmethod
    def check(cls, options: Options, spec: augury.Spec) -> None:
        """Refuse to draw anew weights that were trained, or that are spread over processes."""
        if spec.sharded and options.variant == "official" and options.q_init_std is not None:
            raise augury.UsageError(
                "agmax: variant=official with q_init_std draws every convolution anew, and this network's weights are "
                "spread over processes (FSDP). Set variant=paper, or train without FSDP."
            )
        if spec.starts_trained and options.variant == "official" and options.q_init_std is not None:
            raise augury.UsageError(
                "agmax: variant=official with q_init_std draws every convolution anew, and this network starts from "
                "trained weights. Set variant=paper, or start from fresh weights."
            )

    @augury.hookimpl
    def pre_train_stage(self, run: augury.Run) -> None:
        """In the official variant, draw the network's classifier and convolutions as the Q-network's weights."""
        std = self.options.q_init_std
        if std is None or self.options.variant == "paper":
            return
        layers: list[nn.Linear | nn.Conv2d] = [m for m in run.network.modules() if isinstance(m, nn.Conv2d)]
        layers += [m for m in run.classifier.modules() if isinstance(m, nn.Linear)]
        if not all(layer.weight.requires_grad for layer in layers):
            raise augury.UsageError(
                "agmax: variant=official draws every convolution anew, and some of this network are frozen. "
                "Set variant=paper, or train all stages from fresh weights."
            )
        # All processes must draw alike, so the host's draws count.
        generator = torch.Generator().manual_seed(run.random.getrandbits(63))
        for layer in layers:
            normal_init_(layer, std, generator)

    @augury.hookimpl(wrapper=True)
    def compute_loss(
        self, batch: augury.Batch, output: augury.ModelOutput, run: augury.Run
    ) -> Generator[None, Tensor, Tensor]:
        """Add what makes the views agree to what the criterion makes of both."""
        loss = yield
        # Another method may ask for more views: the first two are compared.
        views = output.logits.unflatten(0, (batch.views, -1))[:2]
        if self.q is not None:
            return loss + self._mutual_information(self.q, views, run)
        agreement = WITHOUT_Q[self.options.agreement](views[0], views[1])
        run.log(self.options.agreement, agreement)
        return loss + agreement

    def _mutual_information(self, q: nn.Sequential, views: Tensor, run: augury.Run) -> Tensor:
        """Its terms, negated, for the views' logits 2 x N x C."""
        logits = views.to(next(q.parameters()))
        predicted = q(torch.cat(tuple(logits), 1))
        probabilities = torch.cat([logits, predicted[None]]).softmax(2)
        entropy = marginal_entropy(probabilities, run.ranks.mean).mean()
        distance = disagreement(probabilities[-1], probabilities[:-1])
        run.log("entropy", entropy)
        run.log("disagreement", distance)
        weight: float = self.options.dl_weight
        return weight * distance - entropy


def _q_network(options: AgMax.Options, classes: int) -> nn.Sequential:
    """[z; z'] N x 2C -> logits N x C."""
    units = q_units(classes) if options.n_units is None else options.n_units
    hidden, last = nn.Linear(2 * classes, units), nn.Linear(units, classes)
    if options.q_init_std is not None:
        for layer in (hidden, last):
            normal_init_(layer, options.q_init_std)
    return nn.Sequential(hidden, nn.ReLU(), last)
