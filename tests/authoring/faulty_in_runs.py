"""More methods that the contract suite must tell apart: faults that show in a real run alone, and sound ones that ask
much of the suite itself."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from tests.authoring.faulty_methods import Wrapper
from torch import Tensor, nn

import augury
from augury import Batch, ModelOutput, Run, Spec, hookimpl


class Demanding(augury.Method):
    """Without a fault: a required option, two that must fit, state that is no tensor, batch normalisation of its own,
    and many rows."""

    class Options(augury.Options):
        rate: float = Field(ge=0, le=1, description="smoothing that is added")
        low: float = Field(0.2, ge=0, le=1, description="smallest share of contrast")
        high: float = Field(0.8, ge=0, le=1, description="largest share of contrast")

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError("low must be <= high")
            return self

    min_rows = 16

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        width = spec.num_features or 1
        self.head = nn.Sequential(nn.Linear(width, 6, bias=False), nn.BatchNorm1d(6), nn.GELU(), nn.Linear(6, 1))
        self.seen = {"steps": 0}

    def get_extra_state(self) -> dict[str, int]:
        return dict(self.seen)

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = dict(state)

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        batch.smoothing = self.options.rate + (1 - self.options.rate) * batch.smoothing
        batch.images = batch.images * run.random.uniform(self.options.low, self.options.high)

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput, run: Run) -> Wrapper:
        loss = yield
        self.seen["steps"] += not run.again
        return loss * (1 + 0.01 * self.seen["steps"]) + 0.1 * self.head(output.features).square().mean()


class Curriculum(augury.Method):
    """Without a fault: a schedule, state that goes with it, and a draw that seldom shows."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.register_buffer("level", torch.ones(()))

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        self.level *= 0.9
        batch.images = batch.images * (1 - 0.5 * run.progress) * self.level
        if run.random.random() < 0.001:
            batch.images = batch.images.flip(3)


class OwnDice(augury.Method):
    """Decides about a batch by a generator of its own, and asks for the run's as well."""

    def __init__(self, options: Any, spec: Spec) -> None:
        super().__init__(options, spec)
        self.dice = torch.Generator().manual_seed(0)

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        run.random.random()
        batch.images = batch.images * torch.rand((), generator=self.dice)


class Bce(augury.Method):
    """Without a fault: replaces the criterion."""

    @hookimpl
    def compute_loss(self, batch: Batch, output: ModelOutput, run: Run) -> Tensor:
        targets = batch.soft_targets(run.num_classes)
        weights = (batch.shares * batch.label_weights).sum(1)
        return weights * F.binary_cross_entropy_with_logits(output.logits, targets, reduction="none").sum(1)


class FirstLabelOnly(augury.Method):
    @hookimpl
    def compute_loss(self, batch: Batch, output: ModelOutput) -> Tensor:
        return batch.label_weights[:, 0] * F.cross_entropy(output.logits, batch.labels[:, 0], reduction="none")


class RowsAlike(augury.Method):
    """Heeds labels, and not their weights."""

    @hookimpl
    def compute_loss(self, batch: Batch, output: ModelOutput, run: Run) -> Tensor:
        return F.cross_entropy(output.logits, batch.soft_targets(run.num_classes), reduction="none")


class LeavesGradients(augury.Method):
    """Differentiates with backward(), and the step takes the weights' gradients along."""

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        with torch.enable_grad():
            images = batch.images.clone().requires_grad_()
            run.network.eval()
            (1e-3 * run.network(images).sum()).backward()
            run.network.train()
        assert images.grad is not None
        batch.images = batch.images + 0.01 * images.grad.sign()


class DetachedTerm(augury.Method):
    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput) -> Wrapper:
        loss = yield
        return loss + output.features.detach().norm(dim=1).mean()


class ForgetsItsEpoch(augury.Method):
    """What `post_epoch` makes is an attribute of Python, which a training loses that goes on from a checkpoint."""

    weight = 1.0

    @hookimpl
    def post_epoch(self) -> None:
        self.weight *= 0.5

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Wrapper:
        loss = yield
        return loss * self.weight


class FreezesLate(augury.Method):
    """From the second epoch on."""

    @hookimpl
    def augment_batch(self, run: Run) -> None:
        if run.epoch >= 1:
            run.network.eval()
            run.classifier.bias.requires_grad_(False)


def _halves(batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Each row and another, half and half."""
    return torch.stack([torch.arange(len(batch)), rows], 1), torch.full((len(batch), 2), 0.5)


class MixesOthersInside(augury.Method):
    """Inside the network other rows than those whose labels it takes."""

    mixes_hidden = True

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        done, told = batch.permutation(run.generator), batch.permutation(run.generator)
        batch.mix_hidden("layer1", lambda hidden: 0.5 * hidden + 0.5 * hidden[done], *_halves(batch, told))


class MixesInsideUndeclared(augury.Method):
    """What it declares is to mix images."""

    mixes = True

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        rows = batch.permutation(run.generator)
        batch.mix_hidden("layer1", lambda hidden: 0.5 * hidden + 0.5 * hidden[rows], *_halves(batch, rows))


class SwapsUndeclared(augury.Method):
    """Mixes rows of one source: labels change, and there are no more of them."""

    @hookimpl
    def augment_batch(self, batch: Batch, run: Run) -> None:
        rows = batch.permutation(run.generator)
        batch.mix(batch.images[rows], rows[:, None], torch.ones(len(batch), 1))


class OwnCollective(augury.Method):
    """A collective that the first process alone calls."""

    @hookimpl(wrapper=True)
    def compute_loss(self, output: ModelOutput, run: Run) -> Wrapper:
        loss = yield
        mean = output.logits.detach().mean(0)
        return loss + 0 * (run.ranks.sum(mean) if run.ranks.rank == 0 else mean).sum()
